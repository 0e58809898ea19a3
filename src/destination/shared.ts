// What the destination's threads share: a page of cells, two bitmaps a RAM block, the blocktime slots, the counters.

import { type Bitmap, bitmapBytes, createBitmap } from '../ram/bitmap.js'
import type { RamBlock } from '../ram/block.js'
import { BLOCKTIME_BYTES } from './blocktime.js'

/** Int32 cells. */
export const CELL = {
  /** Number of the INCOMING_STATUS and of the POSTCOPY_STATE. */
  status: 0,
  postcopy: 1,
  /** Lock of the return path: 0 free, 1 held, 2 held and waited for. */
  returnPathLock: 2,
  /** 1 asks the fault thread to quit. */
  faultThreadQuit: 3,
  /** 1 while the fault thread runs. */
  faultThreadRuns: 4,
  /** Incremented by the main thread for each answer to the stream thread. */
  answers: 5,
  /** The PONG to send when the guest has loaded its device state, plus one; 0: none. */
  pongWhenLoaded: 6,
  /** 1: the stream thread reads no more; what it has to send still goes out. */
  stopReading: 7,
  count: 8,
} as const

/** Written by the stream thread alone, but `requests`, which the fault thread writes. */
export const DESTINATION_STATS = [
  'bytes',
  'pagesNormal',
  'pagesZero',
  'pagesPlaced',
  'discards',
  'requests',
  'packageAtUs',
] as const

/** Memory that depends on the blocks; made by the main thread when they are known. */
export interface PageMaps {
  readonly received: readonly SharedArrayBuffer[]
  readonly requested: readonly SharedArrayBuffer[]
  readonly blocktime: SharedArrayBuffer
}

export function allocatePageMaps(blocks: readonly RamBlock[]): PageMaps {
  const each = (): SharedArrayBuffer[] =>
    blocks.map((block) => new SharedArrayBuffer(bitmapBytes(block.pages)))
  return { received: each(), requested: each(), blocktime: new SharedArrayBuffer(BLOCKTIME_BYTES) }
}

export const bitmapsOver = (blocks: readonly RamBlock[], memory: readonly SharedArrayBuffer[]): Bitmap[] =>
  blocks.map((block, i) => createBitmap(block.pages, memory[i]!))
