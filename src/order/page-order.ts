// Which page goes next: requested ones first, in the order they were asked for; then those that are likely to be asked for
// next; then a scan over the rest. Pure: bitmaps in, page numbers out. Used by the source thread.
//
// Nobody takes a page twice: taking clears its dirty bits, and a request for a page that is not dirty is dropped,
// because that page is on its way already.

import type { Bitmap } from '../ram/bitmap.js'
import type { RamBlock } from '../ram/block.js'
import { trace, tracing } from '../trace.js'
import { createBubblingScan } from './bubbling.js'
import { createLinearScan } from './linear.js'
import { createNeighbours } from './neighbours.js'
import { bringsNeighbours, NEAR_PAGES, type OrderSpec } from './orders.js'
import { type Place, runFrom } from './place.js'
import { createRecordedPages } from './recorded.js'
import { createRequests } from './requests.js'

/**
 * Who led to a page: a request, a guess that it will be asked for soon, or the scan. `repeated`: a request for one that has
 * been sent before, and may be stuck behind a lost packet.
 */
export type PickReason = 'requested' | 'repeated' | 'likely' | 'scanned'

/** What `next` found; one object, filled anew at each call. */
export interface Pick extends Place {
  reason: PickReason
}

export interface PageOrder {
  readonly pick: Pick
  /** Queue a request. False when the queue is full: stop reading requests until it has drained. */
  request(blockIndex: number, page: number, pages: number): boolean
  /** Requests waiting (some may turn out to be for pages already sent). */
  queued(): number
  /** Next requested page that is still dirty, or may go once more, into `pick`. False when there is none. */
  nextRequested(): boolean
  /**
   * Pages next to the last requested one, into `pick`, where it brings its neighbours: the guest may want these in
   * microseconds, those behind it first. False when there are no more.
   */
  nextNear(): boolean
  /** Next pages that are likely to be asked for, `most` at most, into `pick`: recorded, or near to a requested one. False when there are none. */
  nextLikely(most?: number): boolean
  /** True when there are any. */
  anyLikely(): boolean
  /**
   * Next dirty pages of the scan, into `pick`, `most` at most, or the whole of a larger page; wraps over all blocks. False
   * when nothing is dirty.
   * `wrapped` counts the times the scan came past the end of the last block.
   */
  nextScanned(most?: number): boolean
  /** True when there are any. */
  anyScanned(): boolean
  wrapped(): number
  /** Let the scan begin at the first page of the first block again. */
  rewind(): void
}

export interface PageOrderParts {
  readonly spec: OrderSpec
  readonly blocks: readonly RamBlock[]
  /** Still to send, a bitmap a block; taking a page clears its bits. */
  readonly dirty: readonly Bitmap[]
  /** Of these, what need not wait for a request: the scan goes over them. The same bitmaps when that is all. */
  readonly background: readonly Bitmap[]
  /** Pages that were recorded, as in `createRecordedPages`. */
  readonly recorded?: Uint32Array | undefined
  /** After the switch: a pick of larger pages is one of them, since it can only be placed whole. */
  wholeHostPages(): boolean
  /** Asked about a request for a page that has been sent; true: it goes once more. Without it, none does. */
  mayRepeat?(blockIndex: number, page: number): boolean
}

export function createPageOrder({ spec, blocks, dirty, background, ...parts }: PageOrderParts): PageOrder {
  const pick: Pick = { blockIndex: 0, page: 0, pages: 1, reason: 'scanned' }
  const requests = createRequests()
  const scan = (spec.scan === 'bubbling' ? createBubblingScan : createLinearScan)(background)
  const recorded =
    spec.recorded && parts.recorded !== undefined
      ? createRecordedPages(blocks, dirty, parts.recorded)
      : undefined
  // Zero pages, too: to name one costs a few bytes, and a guest that wants one wants the next ones as well.
  const neighbours = bringsNeighbours(spec) ? createNeighbours(dirty, spec.aroundPages) : undefined

  // What may go along with the last requested page: from there to `end`, then from `start` to `page`. Of one object, too.
  const near = { blockIndex: 0, from: 0, end: 0, start: 0, page: 0 }

  /** Takes the pages where `pick` is, the first `most` of them. */
  function take(reason: PickReason, most = pick.pages): true {
    const { blockIndex, page } = pick
    const { ratio } = blocks[blockIndex]!
    pick.pages = Math.min(pick.pages, most)
    if (ratio > 1 && parts.wholeHostPages()) {
      pick.page = page - (page % ratio)
      pick.pages = ratio
    }
    pick.reason = reason
    dirty[blockIndex]!.clearRange(pick.page, pick.page + pick.pages)
    if (background !== dirty) background[blockIndex]!.clearRange(pick.page, pick.page + pick.pages)
    return true
  }

  /** What a page that was asked for means for the pages behind it. */
  function spread(): void {
    const { blockIndex, page, pages } = pick
    scan.asked(blockIndex, page, page + pages)
    // The neighbours that a recorded page needs have been recorded, too.
    if (neighbours === undefined || recorded?.has(blocks[blockIndex]!, page) === true) return
    neighbours.add(blockIndex, page, page + pages)
    near.blockIndex = blockIndex
    near.start = page - (page % NEAR_PAGES)
    near.end = Math.min(near.start + NEAR_PAGES, dirty[blockIndex]!.length)
    near.from = page + pages
    near.page = page
  }

  function seekNear(): boolean {
    const bitmap = dirty[near.blockIndex]!
    for (;;) {
      const page = near.from < near.end ? bitmap.nextSet(near.from, near.end) : -1
      if (page >= 0) {
        pick.blockIndex = near.blockIndex
        pick.page = page
        pick.pages = runFrom(bitmap, page, near.end)
        near.from = page + pick.pages
        return true
      }
      if (near.start === near.page) return false
      near.from = near.start
      near.end = near.page
      near.start = near.page
    }
  }

  const seekLikely = (): boolean => neighbours?.seek(pick) === true || recorded?.seek(pick) === true

  return {
    pick,
    queued: requests.queued,
    wrapped: scan.wrapped,
    request: requests.add,
    nextRequested() {
      while (requests.next(pick)) {
        const { blockIndex, page } = pick
        if (dirty[blockIndex]!.get(page)) {
          if (tracing()) trace('get_queued_page', blocks[blockIndex]!.name, page)
          take('requested')
          spread()
          return true
        }
        if (tracing()) trace('get_queued_page_not_dirty', blocks[blockIndex]!.name, page)
        if (parts.mayRepeat?.(blockIndex, page) === true) {
          pick.reason = 'repeated'
          return true
        }
      }
      return false
    },
    nextNear: () => seekNear() && take('likely'),
    nextLikely: (most) => seekLikely() && take('likely', most),
    anyLikely: seekLikely,
    nextScanned: (most) => scan.seek(pick) && take('scanned', most),
    anyScanned: () => scan.seek(pick),
    rewind: scan.rewind,
  }
}
