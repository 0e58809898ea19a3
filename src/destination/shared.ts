// What the destination thread shares with the main thread: a few cells, two bitmaps a RAM block, blocktime, counters.

import { type Bitmap, bitmapBytes, createBitmap } from '../ram/bitmap.js'
import type { RamBlock } from '../ram/block.js'
import { BLOCKTIME_BYTES } from './blocktime.js'

/** Int32 cells. */
export const CELL = {
  /** Number of the INCOMING_STATUS and of the POSTCOPY_STATE. */
  status: 0,
  postcopy: 1,
  /** Incremented by the main thread for each answer to the destination thread. */
  answers: 2,
  /** 1: the destination thread reads no more; what it has to send still goes out. */
  stopReading: 3,
  count: 4,
} as const

/** Written by the destination thread alone. */
export const DESTINATION_STATS = [
  'bytes',
  'pagesNormal',
  'pagesZero',
  'pagesPlaced',
  'discards',
  'requests',
  'packageAtUs',
  'urgentBytes',
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
