// Pages that earlier runs asked for, in the order of their first use. Pure; source thread.

import type { Bitmap } from '../ram/bitmap.js'
import { createBitmap } from '../ram/bitmap.js'
import { blockOfPage, type RamBlock, RUN_PAGES, totalPages } from '../ram/block.js'
import type { Finder } from './place.js'

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

  /** How many are adjacent in the list as they are in the block. */
  function run(flat: number, page: number): number {
    const most = Math.min(block.pages - page, RUN_PAGES - (page % RUN_PAGES))
    let pages = 1
    while (pages < most && list[next + pages] === flat + pages && dirty[block.index]!.get(page + pages))
      pages++
    return pages
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
        place.page = page
        place.pages = run(flat, page)
        return true
      }
      return false
    },
  }
}
