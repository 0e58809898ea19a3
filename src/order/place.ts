// Where pages are, and who finds the next ones. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { RUN_PAGES } from '../ram/block.js'

/** Filled anew at each call, so that finding pages leaves no garbage. */
export interface Place {
  blockIndex: number
  /** Target page of the block. */
  page: number
  /** How many, from there on: no more than to the end of an aligned run. */
  pages: number
}

/** Pages whose bits are set, from `page` (which is one) to `limit` or the end of its run. */
export const runFrom = (bitmap: Bitmap, page: number, limit = bitmap.length): number =>
  bitmap.nextClear(page, Math.min(limit, page - (page % RUN_PAGES) + RUN_PAGES)) - page

/** Finds pages that are still to send; taking them is its caller's. */
export interface Finder {
  /** Where the next pages are, into `place`; the same ones until they have been taken. False when there are none. */
  seek(place: Place): boolean
}

export interface Scan extends Finder {
  /** A request led to `page`; `end`: the first page behind what went out for it. */
  asked(blockIndex: number, page: number, end: number): void
  /** Begin at the first page of the first block again. */
  rewind(): void
  /** Times the scan came past the end of the last block. */
  wrapped(): number
}
