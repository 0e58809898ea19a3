// Adaptive pre-paging (Hines and Gopalan): what a guest has just asked for has neighbours that it will want, on both sides.
// So the scan goes outward from each of the last few pages that were asked for, by turns, and linearly when all of them
// have come to the ends of their blocks. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { createLinearScan } from './linear.js'
import { runFrom, type Scan } from './place.js'

const PIVOTS = 4
/** A turn ends with an aligned group of so many pages. */
const TURN_PAGES = 64
/** A page this near to a bubble belongs to it: the bubble moves there, and the other pivots stay. */
const NEAR_PAGES = 256

/** `low`: its pages from here on up to `high` have gone; 0 and the end of the block when that way is done. */
interface Pivot {
  block: number
  low: number
  high: number
}

/** @param pages what it goes over, a bitmap a block: a page whose bit is set is still to send. */
export function createBubblingScan(pages: readonly Bitmap[]): Scan {
  const linear = createLinearScan(pages)
  const pivots: Pivot[] = Array.from({ length: PIVOTS }, () => ({ block: 0, low: 0, high: pages[0]!.length }))
  let newest = 0
  let turn = 0 // pivot turn >> 1, upward when it is even
  const run = { block: 0, from: 0, end: 0 } // what is left of this turn

  /** Makes `run` the pivot's next pages that way; false when there are none. */
  function extend(pivot: Pivot, upward: boolean): boolean {
    const bitmap = pages[pivot.block]!
    const page = upward ? bitmap.nextSet(pivot.high) : bitmap.previousSet(pivot.low)
    if (page < 0) {
      if (upward) pivot.high = bitmap.length
      else pivot.low = 0
      return false
    }
    const first = page - (page % TURN_PAGES)
    run.block = pivot.block
    run.from = upward ? page : first
    run.end = upward ? Math.min(first + TURN_PAGES, bitmap.length) : page + 1
    if (upward) pivot.high = run.end
    else pivot.low = run.from
    return true
  }

  function nextTurn(): boolean {
    for (let tries = 0; tries < 2 * PIVOTS; tries++) {
      const at = turn
      turn = (turn + 1) % (2 * PIVOTS)
      if (extend(pivots[at >> 1]!, (at & 1) === 0)) return true
    }
    return false
  }

  return {
    wrapped: linear.wrapped,
    seek(place) {
      do {
        const page = run.from < run.end ? pages[run.block]!.nextSet(run.from, run.end) : -1
        if (page < 0) continue
        run.from = page
        place.blockIndex = run.block
        place.page = page
        place.pages = runFrom(pages[run.block]!, page, run.end)
        return true
      } while (nextTurn())
      return linear.seek(place)
    },
    asked(blockIndex, page, end) {
      linear.asked(blockIndex, page, end)
      const near = pivots.findIndex(
        ({ block, low, high }) =>
          block === blockIndex && page >= low - NEAR_PAGES && page < high + NEAR_PAGES,
      )
      newest = near >= 0 ? near : (newest + 1) % PIVOTS
      const pivot = pivots[newest]!
      pivot.block = blockIndex
      pivot.low = page
      pivot.high = end
      run.end = run.from
      turn = 2 * newest
    },
    rewind() {
      for (const pivot of pivots) {
        pivot.low = 0
        pivot.high = pages[pivot.block]!.length
      }
      run.end = run.from
      linear.rewind()
    },
  }
}
