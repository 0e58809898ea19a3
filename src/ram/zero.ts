// Is this page of guest RAM all zero? Source thread; only for RAM that is present, never for RAM that could fault.

import { isZeroRange, viewOf } from '../os/mapping.js'
import { type RamBlock, TARGET_PAGE_BYTES } from './block.js'

/** Bytes in one view: a view may not be larger than 4 GiB, and smaller ones are faster to index. */
const VIEW_BYTES = 1024 * 1024 * 1024
const PAGES_PER_VIEW = VIEW_BYTES / TARGET_PAGE_BYTES
const WORDS_PER_PAGE = TARGET_PAGE_BYTES / 4

/** Most pages that hold anything have a non-zero first word, which JavaScript sees without a call. */
export function createZeroTest(block: RamBlock): (page: number) => boolean {
  const views: Int32Array[] = []
  for (let at = 0; at < block.length; at += VIEW_BYTES) {
    const bytes = viewOf(block.address + at, Math.min(VIEW_BYTES, block.length - at))
    views.push(new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4))
  }
  return (page) => {
    const view = views[Math.floor(page / PAGES_PER_VIEW)]!
    if (view[(page % PAGES_PER_VIEW) * WORDS_PER_PAGE] !== 0) return false
    return isZeroRange(block.address + page * TARGET_PAGE_BYTES, TARGET_PAGE_BYTES)
  }
}
