// The states of an outgoing migration. Names are QEMU's (`query-migrate` of 10.0). Stepped by the source thread.

import type { Table } from '../machine.js'

export const SOURCE_STATUS = {
  none: { migrate: 'setup' },
  setup: { ready: 'active', takeOver: 'postcopy-paused', cancel: 'cancelling', fail: 'failed' },
  active: { switchover: 'device', cancel: 'cancelling', fail: 'failed' },
  device: { packageSent: 'postcopy-active', precopyDone: 'completed', cancel: 'cancelling', fail: 'failed' },
  'postcopy-active': { allSent: 'completed', channelLost: 'postcopy-paused', fail: 'failed' },
  'postcopy-paused': { recover: 'postcopy-recover-setup', fail: 'failed' },
  'postcopy-recover-setup': { channelUp: 'postcopy-recover', channelLost: 'postcopy-paused', fail: 'failed' },
  'postcopy-recover': { resumeAck: 'postcopy-active', channelLost: 'postcopy-paused', fail: 'failed' },
  cancelling: { cancelled: 'cancelled' },
  completed: {},
  failed: {},
  cancelled: {},
} as const satisfies Table
