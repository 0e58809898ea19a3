// Fault-around: a page that was asked for brings the others of its aligned group. It goes first and alone; these go behind
// it, those of the latest request first, for what a guest wants next is near to what it has just wanted. A guest that goes
// through memory, and asks for one group after the other, is brought more and more at once. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { type Finder, runFrom } from './place.js'

/** Spans that wait; of more, the oldest are left to the scan. */
const SPANS = 64
/** Ways through memory that are followed at once. */
const STREAMS = 8
/** What one page brings at most, in groups. */
const GROUPS_MAX = 16

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
  // A ring: block, start and end of what the last page of each way has brought.
  const streams = new Uint32Array(STREAMS * 3)
  let newest = 0

  function push(blockIndex: number, from: number, end: number): void {
    if (from >= end) return
    top = (top + 1) % SPANS
    depth = Math.min(depth + 1, SPANS)
    spans[top * 3] = blockIndex
    spans[top * 3 + 1] = from
    spans[top * 3 + 2] = end
  }

  /**
   * Where that ends which a page of the group at `start` brings: as with the kernel's read-ahead, it is twice as much as
   * before where that has been used up, and what lies behind it is asked for.
   */
  function reach(blockIndex: number, start: number): number {
    const { length } = pages[blockIndex]!
    for (let i = 0; i < STREAMS; i++) {
      const at = i * 3
      const before = streams[at + 2]! - streams[at + 1]!
      if (before === 0 || streams[at] !== blockIndex || start < streams[at + 1]!) continue
      if (start >= streams[at + 2]! + before) continue
      if (start < streams[at + 2]!) return streams[at + 2]! // it has not come yet: now it goes first
      streams[at + 1] = start
      streams[at + 2] = Math.min(start + Math.min(2 * before, GROUPS_MAX * groupPages), length)
      return streams[at + 2]!
    }
    newest = (newest + 1) % STREAMS
    streams[newest * 3] = blockIndex
    streams[newest * 3 + 1] = start
    streams[newest * 3 + 2] = Math.min(start + groupPages, length)
    return streams[newest * 3 + 2]!
  }

  return {
    add(blockIndex, page, end) {
      const start = page - (page % groupPages)
      const last = reach(blockIndex, start)
      push(blockIndex, start, page)
      push(blockIndex, end, last)
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
