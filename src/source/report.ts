// What the source counts while it works, and what it reports at the end.

import type { StateOf } from '../machine.js'
import type { SOURCE_STATUS } from './status.js'

/** Written by the source thread alone. */
export const SOURCE_STATS = [
  'passes',
  'pagesNormal',
  'pagesZero',
  'pagesRequested',
  'pagesLikely',
  'requests',
  'bytesSent',
  'bytesRemaining',
  'bytesPerSecond',
  'dirtyBytesLastPass',
  'windowBytes',
] as const

export type SourceStatus = StateOf<typeof SOURCE_STATUS>
export type SwitchReason = 'ordered' | 'at once' | 'precopy diverges'

export interface SourceReport {
  readonly ok: boolean
  readonly role: 'source'
  readonly status: SourceStatus
  readonly error?: string
  /** The guest runs on at the source: the migration failed or was cancelled before the destination could run it. */
  readonly guestHere: boolean
  /** How the guest went over: RAM first, or RAM later. `none` when it did not. */
  readonly mode: 'precopy' | 'postcopy' | 'none'
  readonly switchReason?: SwitchReason
  /** From the stop of the guest until the destination confirmed that its device state is loaded, ms. */
  readonly downtimeMs: number
  /** From the connection to the destination's SHUT, ms. */
  readonly totalMs: number
  /** Whole seconds since 1970 would not do: µs of CLOCK_REALTIME at which the guest stopped; 0 when it did not. */
  readonly stoppedAtUs: number
  readonly passes: number
  readonly pages: {
    readonly normal: number
    readonly zero: number
    /** Of all these, sent because they were asked for. */
    readonly requested: number
    /** Sent before the scan would have, because they were likely to be asked for. */
    readonly likely: number
  }
  /** Page requests that came over the return path, repeated ones included. */
  readonly requests: number
  /** Connections that it ended with: 2 where requested pages had one of their own. */
  readonly channels: 1 | 2
  /** The destination's thread for requested pages ran before all others; see urgent-thread.ts. */
  readonly realTime?: true
  readonly bytes: number
  /**
   * Where what the guest may wait for pages was limited: what it waited in all, as seen from the source, and for how long more
   * than that although the push had the least it can have, ms.
   */
  readonly stall?: { readonly waitedMs: number; readonly missedMs: number }
}
