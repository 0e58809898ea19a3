// What the destination reports at the end.

import type { StateOf } from '../machine.js'
import type { INCOMING_STATUS } from './status.js'

export type IncomingStatus = StateOf<typeof INCOMING_STATUS>

export interface DestinationReport {
  readonly ok: boolean
  readonly role: 'destination'
  readonly status: IncomingStatus
  readonly error?: string
  readonly machine: string
  /** RAM, bytes. */
  readonly memoryBytes: number
  /**
   * From the stop of the guest at the source until its first instruction here, ms. It compares CLOCK_REALTIME of the two
   * ends, so between hosts it is as good as their clocks agree. Undefined when the source does not say when it stopped
   * (QEMU), or the guest has not run.
   */
  readonly downtimeMs?: number
  /** From the connection to SHUT, ms; and from the package to SHUT, ms: the postcopy phase, 0 when there was none. */
  readonly totalMs: number
  readonly postcopyMs: number
  readonly pages: { readonly normal: number; readonly zero: number; readonly requested: number }
  readonly faults: number
  /** From the moment the destination hears of a fault until the page is placed, µs. */
  readonly faultLatencyUs: { readonly p50: number; readonly p99: number; readonly max: number }
  /** `[i]`: faults that took 2^i to 2^(i+1) µs. */
  readonly faultHistogramUs: readonly number[]
  /** All guest threads blocked at once, ms; and each by its thread id, ms. */
  readonly blocktimeMs: number
  readonly blocktimeByThreadMs: Readonly<Record<string, number>>
  readonly bytes: number
}
