// QEMU's order: page after page, on from the last one that was asked for, and round over all blocks. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { runFrom, type Scan } from './place.js'

/** @param pages what it goes over, a bitmap a block: a page whose bit is set is still to send. */
export function createLinearScan(pages: readonly Bitmap[]): Scan {
  let block = 0
  let from = 0
  let wrapped = 0
  return {
    wrapped: () => wrapped,
    /** Once round if need be: the rest of this block, all others, its start. */
    seek(place) {
      for (let step = 0; step <= pages.length; step++) {
        const bitmap = pages[block]!
        const page = from < bitmap.length ? bitmap.nextSet(from) : -1
        if (page >= 0) {
          from = page
          place.blockIndex = block
          place.page = page
          place.pages = runFrom(bitmap, page)
          return true
        }
        from = 0
        block++
        if (block === pages.length) {
          block = 0
          wrapped++
        }
      }
      return false
    },
    asked(blockIndex, _page, end) {
      block = blockIndex
      from = end
    },
    rewind() {
      block = 0
      from = 0
    },
  }
}
