// Fault-around: a page that was asked for brings the others of its aligned group. It goes first and alone; these go behind
// it, those of the latest request first, for what a guest wants next is near to what it has just wanted. A guest that goes
// through memory, up or down, and asks for one group after the other, is brought more and more at once; and so is one that has
// asked for so many pages that it goes through its memory some other way. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { GROUPS_LATER, SMALL_REQUESTS } from './orders.js'
import { type Finder, runFrom } from './place.js'

/** Spans that wait; of more, the oldest are left to the scan. */
const SPANS = 64
/** Ways through memory that are followed at once. */
const WAYS = 8
/** What one page brings at most, in groups. */
const GROUPS_MAX = 16

export interface Neighbours extends Finder {
  /** `page` was asked for, and what went out for it ends at `end`. */
  add(blockIndex: number, page: number, end: number): void
}

/**
 * @param pages what may go, a bitmap a block
 * @param firstGroupPages in a group, at first; a power of two
 */
export function createNeighbours(pages: readonly Bitmap[], firstGroupPages: number): Neighbours {
  const pagesMax = GROUPS_MAX * firstGroupPages
  let groupPages = firstGroupPages
  let requests = 0
  // A stack that forgets its bottom: block, next page and end of each span. Numbers, no objects.
  const spans = new Uint32Array(SPANS * 3)
  let top = 0
  let depth = 0
  // A ring: block, start and end of what the last page of each way has brought.
  const ways = new Uint32Array(WAYS * 3)
  let newest = 0

  function push(blockIndex: number, from: number, end: number): void {
    if (from >= end || pages[blockIndex]!.nextSet(from, end) < 0) return
    top = (top + 1) % SPANS
    depth = Math.min(depth + 1, SPANS)
    spans[top * 3] = blockIndex
    spans[top * 3 + 1] = from
    spans[top * 3 + 2] = end
  }

  /**
   * The way that a page of the group at `start` belongs to, its index in `ways`, with what that page brings: as with the
   * kernel's read-ahead, twice as much as before where that has been used up and what lies next to it is asked for.
   */
  function wayOf(blockIndex: number, start: number): number {
    const { length } = pages[blockIndex]!
    for (let at = 0; at < ways.length; at += 3) {
      const from = ways[at + 1]!
      const end = ways[at + 2]!
      if (from === end || ways[at] !== blockIndex) continue
      const next = Math.max(groupPages, Math.min(2 * (end - from), pagesMax))
      if (start >= from && start < end) return at // it has not come yet: now it goes first
      if (start >= end && start < 2 * end - from) {
        ways[at + 1] = start
        ways[at + 2] = Math.min(start + next, length)
        return at
      }
      if (start < from && start >= 2 * from - end) {
        ways[at + 2] = Math.min(start + groupPages, length)
        ways[at + 1] = Math.max(0, start + groupPages - next)
        return at
      }
    }
    newest = (newest + 3) % ways.length
    ways[newest] = blockIndex
    ways[newest + 1] = start
    ways[newest + 2] = Math.min(start + groupPages, length)
    return newest
  }

  return {
    add(blockIndex, page, end) {
      if (requests++ === SMALL_REQUESTS) groupPages *= GROUPS_LATER
      const start = page - (page % groupPages)
      const way = wayOf(blockIndex, start)
      // Last in, first out: what is nearest comes last.
      for (let group = ways[way + 1]!; group < start; group += groupPages)
        push(blockIndex, group, group + groupPages)
      push(blockIndex, start, page)
      push(blockIndex, end, ways[way + 2]!)
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
