// The two states of an incoming migration: what a user sees, and how far postcopy has come.
// Both are stepped by the destination thread. Names are QEMU's.

import type { Table } from '../machine.js'

/** `query-migrate` of the destination. */
export const INCOMING_STATUS = {
  none: { incoming: 'setup', fail: 'failed' },
  setup: { streamOpen: 'active', fail: 'failed' },
  active: { listen: 'postcopy-active', eof: 'completed', fail: 'failed' },
  'postcopy-active': { eof: 'completed', channelLost: 'postcopy-paused', fail: 'failed' },
  'postcopy-paused': { channelUp: 'postcopy-recover', fail: 'failed' },
  'postcopy-recover': { resume: 'postcopy-active', channelLost: 'postcopy-paused', fail: 'failed' },
  completed: {},
  failed: {},
} as const satisfies Table

/**
 * Which postcopy commands are legal. LISTEN is legal in `advise` too: a source that has nothing to discard sends no
 * DISCARD, and what the first DISCARD prepares is then done at LISTEN.
 */
export const POSTCOPY_STATE = {
  none: { advise: 'advise' },
  advise: { discard: 'discard', listen: 'listening', end: 'end' },
  discard: { discard: 'discard', listen: 'listening' },
  listening: { run: 'running' },
  running: { end: 'end' },
  end: {},
} as const satisfies Table
