// RAM at a glance: the state of each of N equal parts, for a terminal. Main thread; reads bitmaps that others write.

import type { Bitmap } from '../ram/bitmap.js'
import { type RamBlock, totalPages } from '../ram/block.js'
import { bitmapsOver, type PageMaps } from './shared.js'

/** What a part shows: a page in it that a guest thread asked for and got counts more than one that just came. */
export const PAGE_STATE = { missing: 0, partly: 1, received: 2, waiting: 3, faulted: 4 } as const

export function samplePages(
  source: { blocks: readonly RamBlock[]; maps: PageMaps },
  cells: number,
): Uint8Array {
  const { blocks, maps } = source
  const received = bitmapsOver(blocks, maps.received)
  const requested = bitmapsOver(blocks, maps.requested)
  const total = totalPages(blocks)
  const map = new Uint8Array(Math.min(cells, total))
  for (let cell = 0; cell < map.length; cell++) {
    const start = Math.floor((cell * total) / map.length)
    map[cell] = stateOf(blocks, received, requested, start, Math.floor(((cell + 1) * total) / map.length))
  }
  return map
}

function stateOf(
  blocks: readonly RamBlock[],
  received: readonly Bitmap[],
  requested: readonly Bitmap[],
  start: number,
  end: number,
): number {
  let some = false
  let all = true
  let asked = false
  let waiting = false
  for (const block of blocks) {
    const from = Math.max(start, block.firstPage) - block.firstPage
    const to = Math.min(end, block.firstPage + block.pages) - block.firstPage
    if (from >= to) continue
    const have = received[block.index]!
    const want = requested[block.index]!
    some ||= have.any(from, to)
    all &&= have.nextClear(from, to) === to
    if (!want.any(from, to)) continue
    asked = true
    for (let page = want.nextSet(from, to); page >= 0; page = want.nextSet(page + 1, to)) {
      if (!have.get(page)) waiting = true
    }
  }
  if (waiting) return PAGE_STATE.waiting
  if (asked) return PAGE_STATE.faulted
  if (all) return PAGE_STATE.received
  return some ? PAGE_STATE.partly : PAGE_STATE.missing
}
