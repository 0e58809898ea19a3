// Which page goes next: requested ones first, in the order they were asked for, then a linear scan that goes on behind
// the last request. Pure: bitmaps in, page numbers out. Used by the source thread.
//
// Nobody takes a page twice: taking clears its dirty bits, and a request for a page that is not dirty is dropped,
// because that page is on its way already.

import { LIMITS } from '../limits.js'
import type { Bitmap } from '../ram/bitmap.js'
import type { RamBlock } from '../ram/block.js'
import { trace, tracing } from '../trace.js'

/** What `next` found; one object, filled anew at each call. */
export interface Pick {
  blockIndex: number
  /** First target page, and how many (1, or a whole host page's worth). */
  page: number
  pages: number
  /** A request led here, rather than the scan. */
  requested: boolean
  /** It has been sent before, and may be stuck behind a lost packet. */
  again: boolean
}

export interface PageOrder {
  readonly pick: Pick
  /** Queue a request. False when the queue is full: stop reading requests until it has drained. */
  request(blockIndex: number, page: number, pages: number): boolean
  /** Requests waiting (some may turn out to be for pages already sent). */
  readonly queued: number
  /** Next requested page that is still dirty, or may go once more, into `pick`. False when there is none. */
  nextRequested(): boolean
  /**
   * Next dirty page of the scan, into `pick`; wraps over all blocks. False when nothing is dirty.
   * `wrapped` counts the times the scan came past the end of the last block.
   */
  nextScanned(): boolean
  /** True when there is one. */
  anyScanned(): boolean
  readonly wrapped: number
  /** Let the scan begin at the first page of the first block again. */
  rewind(): void
}

/**
 * @param wholeHostPages after the switch: a pick is a whole host page, since it can only be placed whole.
 * @param mayRepeat asked about a request for a page that has been sent; true: it goes once more.
 * @param background what the scan goes over: the dirty pages, or those of them that need not wait for a request.
 */
export function createPageOrder(
  blocks: readonly RamBlock[],
  dirty: readonly Bitmap[],
  wholeHostPages: () => boolean,
  background: readonly Bitmap[] = dirty,
  mayRepeat: (blockIndex: number, page: number) => boolean = () => false,
): PageOrder {
  const pick: Pick = { blockIndex: 0, page: 0, pages: 1, requested: false, again: false }
  // A ring of requests: three numbers each, no objects.
  const capacity = LIMITS.requestQueueMax
  const ring = new Float64Array(capacity * 3)
  let head = 0
  let queued = 0
  let scanBlock = 0
  let scanPage = 0
  let wrapped = 0

  function found(blockIndex: number, page: number, requested: boolean): true {
    const block = blocks[blockIndex]!
    const pages = wholeHostPages() ? block.ratio : 1
    pick.blockIndex = blockIndex
    pick.page = page - (page % pages)
    pick.pages = pages
    pick.requested = requested
    pick.again = false
    dirty[blockIndex]!.clearRange(pick.page, pick.page + pages)
    if (background !== dirty) background[blockIndex]!.clearRange(pick.page, pick.page + pages)
    scanBlock = blockIndex
    scanPage = pick.page + pages
    return true
  }

  /** Moves the scan to the next page it is for, once round if need be: the rest of this block, all others, its start. */
  function seek(): boolean {
    for (let step = 0; step <= blocks.length; step++) {
      const page = scanPage < blocks[scanBlock]!.pages ? background[scanBlock]!.nextSet(scanPage) : -1
      if (page >= 0) {
        scanPage = page
        return true
      }
      scanPage = 0
      scanBlock++
      if (scanBlock === blocks.length) {
        scanBlock = 0
        wrapped++
      }
    }
    return false
  }

  return {
    pick,
    get queued() {
      return queued
    },
    get wrapped() {
      return wrapped
    },
    request(blockIndex, page, pages) {
      if (queued === capacity) return false
      const at = ((head + queued) % capacity) * 3
      ring[at] = blockIndex
      ring[at + 1] = page
      ring[at + 2] = pages
      queued++
      return true
    },
    nextRequested() {
      while (queued > 0) {
        const at = head * 3
        const blockIndex = ring[at]!
        const page = ring[at + 1]!
        if (ring[at + 2]! > 1) {
          ring[at + 1] = page + 1
          ring[at + 2]!--
        } else {
          head = (head + 1) % capacity
          queued--
        }
        if (dirty[blockIndex]!.get(page)) {
          if (tracing()) trace('get_queued_page', blocks[blockIndex]!.name, page)
          return found(blockIndex, page, true)
        }
        if (tracing()) trace('get_queued_page_not_dirty', blocks[blockIndex]!.name, page)
        if (mayRepeat(blockIndex, page)) {
          Object.assign(pick, { blockIndex, page, pages: 1, requested: true, again: true })
          return true
        }
      }
      return false
    },
    nextScanned() {
      if (!seek()) return false
      return found(scanBlock, scanPage, false)
    },
    anyScanned: seek,
    rewind() {
      scanBlock = 0
      scanPage = 0
    },
  }
}
