// What the progress display is given: the state of one or both sides at a moment, as plain data. Types only.

import type { IncomingStatus, SourceStatus } from '../index.js'
import type { PrintedText } from './serial.js'

interface SideView {
  readonly bytes: number
  /** 0 before it is known. */
  readonly memoryBytes: number
  /** In the guest's own unit. */
  readonly progress: number
  readonly printed: PrintedText
}

export interface SourceView extends SideView {
  readonly status: SourceStatus
  readonly passes: number
  readonly bytesRemaining: number
  readonly requests: number
}

export interface DestinationView extends SideView {
  readonly status: IncomingStatus
  /** Page states as `PAGE_STATE` numbers them; empty before the RAM blocks are known. */
  readonly map: Uint8Array
  readonly requests: number
}

export interface View {
  readonly title: string
  readonly source?: SourceView
  readonly destination?: DestinationView
  /** Measured by the display. */
  readonly bytesPerSecond: number
}
