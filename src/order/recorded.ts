// Pages that earlier runs asked for, in the order of their first use, each with those beside it. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { createBitmap } from '../ram/bitmap.js'
import { blockOfPage, type RamBlock, totalPages } from '../ram/block.js'
import type { Finder, Place } from './place.js'

/** A page brings what was recorded beside it in its aligned group of so many. */
const BESIDE_PAGES = 64

/** The list, and which pages are in it. */
export interface RecordedPages extends Finder {
  has(block: RamBlock, page: number): boolean
}

/**
 * @param list numbers of pages among those of all blocks (`RamBlock.firstPage` and the page of the block).
 * @param dirty what is still to send, a bitmap a block: pages that are zero, too, are waited for.
 */
export function createRecordedPages(
  blocks: readonly RamBlock[],
  dirty: readonly Bitmap[],
  list: Uint32Array,
): RecordedPages {
  const known = createBitmap(totalPages(blocks))
  for (const page of list) if (page < known.length) known.set(page)
  let next = 0
  let block = blocks[0]!

  const waits = (page: number): boolean => dirty[block.index]!.get(page) && known.get(block.firstPage + page)

  /** The page, and what was recorded on both sides of it: an image is read once for all of its run. */
  function spread(place: Place, page: number): void {
    const start = page - (page % BESIDE_PAGES)
    const limit = Math.min(start + BESIDE_PAGES, block.pages)
    let first = page
    while (first > start && waits(first - 1)) first--
    let end = page + 1
    while (end < limit && waits(end)) end++
    place.page = first
    place.pages = end - first
  }

  return {
    has: ({ firstPage }, page) => known.get(firstPage + page),
    seek(place) {
      for (; next < list.length; next++) {
        const flat = list[next]!
        if (flat >= known.length) continue
        if (flat < block.firstPage || flat >= block.firstPage + block.pages) block = blockOfPage(blocks, flat)
        const page = flat - block.firstPage
        if (!dirty[block.index]!.get(page)) continue
        place.blockIndex = block.index
        spread(place, page)
        return true
      }
      return false
    },
  }
}
