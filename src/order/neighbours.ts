// Fault-around: a page that was asked for brings the others of its aligned group. It goes first and alone; these go behind
// it, those of the latest request first, for what a guest wants next is near to what it has just wanted. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { type Finder, runFrom } from './place.js'

/** Spans that wait; of more, the oldest are left to the scan. */
const SPANS = 64

export interface Neighbours extends Finder {
  /** `page` was asked for, and what went out for it ends at `end`. */
  add(blockIndex: number, page: number, end: number): void
}

/** @param pages what may go, a bitmap a block. */
export function createNeighbours(pages: readonly Bitmap[], groupPages: number): Neighbours {
  // A stack that forgets its bottom: block, next page and end of each span. Numbers, no objects.
  const spans = new Uint32Array(SPANS * 3)
  let top = 0
  let depth = 0

  function push(blockIndex: number, from: number, end: number): void {
    if (from >= end) return
    top = (top + 1) % SPANS
    depth = Math.min(depth + 1, SPANS)
    spans[top * 3] = blockIndex
    spans[top * 3 + 1] = from
    spans[top * 3 + 2] = end
  }

  return {
    add(blockIndex, page, end) {
      const start = page - (page % groupPages)
      push(blockIndex, start, page)
      push(blockIndex, end, Math.min(start + groupPages, pages[blockIndex]!.length))
    },
    seek(place) {
      for (; depth > 0; depth--, top = (top + SPANS - 1) % SPANS) {
        const blockIndex = spans[top * 3]!
        const end = spans[top * 3 + 2]!
        const page = pages[blockIndex]!.nextSet(spans[top * 3 + 1]!, end)
        if (page < 0) continue
        spans[top * 3 + 1] = page
        place.blockIndex = blockIndex
        place.page = page
        place.pages = runFrom(pages[blockIndex]!, page, end)
        return true
      }
      return false
    },
  }
}
