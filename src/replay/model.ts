// A resume without a guest: a trace of what a guest asked for is run against an order of pages, with the order, the window
// and the rules of the real push, over a link that is three numbers. Pure; any thread.
//
// The guest is one that touches the pages of the trace one after the other and calculates for as long in between as it did
// when the trace was taken. A page that is there costs nothing. One that is not stops it: the request takes its way, waits
// behind what is on the link, and the page comes back. The link is a queue with one rate, which is that of its slowest part.

import {
  LIKELY_CHUNK_PAGES,
  LIKELY_HOLD_MS,
  LOOK_PAGES,
  NEAR_WINDOW_BYTES_MIN,
  type OrderSpec,
} from '../order/orders.js'
import { createPageOrder, type PageOrder } from '../order/page-order.js'
import type { WorkingSet } from '../order/working-set.js'
import { type Bitmap, createBitmap, merge } from '../ram/bitmap.js'
import { blockOfPage, type RamBlock, TARGET_PAGE_BYTES, totalPages } from '../ram/block.js'
import { createPushWindow } from '../source/window.js'
import { createYielding, type YieldingOptions } from '../source/yielding.js'

/** A page with its header, and a page of zeros, on the wire. */
const PAGE_BYTES = TARGET_PAGE_BYTES + 8
const ZERO_PAGE_BYTES = 9
const LIKELY_BYTES = LIKELY_CHUNK_PAGES * TARGET_PAGE_BYTES

export interface Trace extends WorkingSet {
  readonly blocks: readonly RamBlock[]
  /** Pages that are not zero, a bitmap a block. */
  readonly present: readonly Bitmap[]
}

export interface Conditions extends YieldingOptions {
  /** Undefined: nothing is pushed. */
  readonly spec: OrderSpec | undefined
  /** What goes first where the order is a recorded one. */
  readonly recorded: Uint32Array
  /** It goes for so long before the guest runs, ms. */
  readonly aheadMs: number
  /** What else is likely goes only from then on, when the device state is loaded, ms. */
  readonly loadedMs: number
  /** The source sleeps meanwhile, and wakes so much later than it wanted to, µs. */
  readonly wakeUs: number
  /** Bytes a second that source, link and destination carry together. */
  readonly bandwidth: number
  /** What a fault cost when the trace was taken, µs: the guest's time between two faults is the rest. */
  readonly recordedFaultUs: number
  /** What one costs now, with nothing before it on the link, µs. */
  readonly faultUs: number
}

export interface Outcome {
  /** Touches of pages that were not there. */
  readonly faults: number
  /** How long the guest stood still, ms. */
  readonly stallMs: number
  /** When the guest was through with the trace, ms. */
  readonly finishedMs: number
  /** When the last page of its RAM was there, ms; undefined when pages go on demand alone. */
  readonly residentMs: number | undefined
  readonly bytes: number
}

export function simulate(trace: Trace, conditions: Conditions): Outcome {
  const source = createModelSource(trace, conditions)
  const { recordedFaultUs } = conditions
  let nowUs = 0
  let [faults, stallUs] = [0, 0]
  let before = 0
  for (const [i, page] of trace.pages.entries()) {
    const atUs = trace.firstUs[i]!
    // The fault before it is in the recorded time, but for the first page.
    nowUs += Math.max(0, atUs - before - (i === 0 ? 0 : recordedFaultUs))
    before = atUs
    const thereUs = source.touch(page, nowUs)
    if (thereUs <= nowUs) continue
    faults++
    stallUs += thereUs - nowUs
    nowUs = thereUs
  }
  const residentUs = source.drain()
  return {
    faults,
    stallMs: stallUs / 1000,
    finishedMs: nowUs / 1000,
    residentMs: residentUs === undefined ? undefined : residentUs / 1000,
    bytes: source.bytes,
  }
}

interface ModelSource {
  /** The guest touches the page at `nowUs`. Returns when the page is there: that time, or earlier, when it was. */
  touch(page: number, nowUs: number): number
  /** Sends the rest. Returns when all is there; undefined when pages go on demand alone. */
  drain(): number | undefined
  readonly bytes: number
}

function createModelSource(trace: Trace, conditions: Conditions): ModelSource {
  const { blocks, present, pages } = trace
  const { spec, recorded, bandwidth, faultUs, wakeUs } = conditions
  const loadedUs = Math.min(conditions.loadedMs, LIKELY_HOLD_MS) * 1000
  const usPerByte = 1e6 / bandwidth
  const oneWayUs = faultUs / 2
  const dirty = blocks.map((block) => createBitmap(block.pages))
  const background = blocks.map((block) => createBitmap(block.pages))
  for (const { index, pages: length } of blocks) {
    dirty[index]!.setRange(0, length)
    merge(background[index]!, present[index]!)
  }
  const order = createPageOrder({
    spec: spec ?? { aroundPages: 1, recorded: false, scan: 'behind' },
    ...{ blocks, dirty, background, recorded },
    wholeHostPages: () => false,
  })
  const window = createPushWindow()
  const yielding = createYielding(conditions)
  yielding.noteRequest(0) // the guest that starts is about to ask
  /** When each page of the trace is there; of others nobody asks. */
  const wanted = createBitmap(totalPages(blocks))
  for (const page of pages) wanted.set(page)
  const thereUs = new Map<number, number>()
  const pongs: { readonly value: number; readonly atUs: number }[] = []
  let nowUs = 0
  let linkFreeUs = 0
  let chunk = 0
  let bytes = 0

  /** Puts the pages that the order has picked on the link. Returns their bytes. */
  function send(): number {
    const { blockIndex, page, pages } = order.pick
    const { firstPage } = blocks[blockIndex]!
    let sent = 0
    for (let p = page; p < page + pages; p++) {
      const size = present[blockIndex]!.get(p) ? PAGE_BYTES : ZERO_PAGE_BYTES
      linkFreeUs = Math.max(nowUs, linkFreeUs) + size * usPerByte
      if (wanted.get(firstPage + p)) thereUs.set(firstPage + p, linkFreeUs + oneWayUs)
      sent += size
    }
    bytes += sent
    return sent
  }

  function hearPongs(): void {
    for (let pong = pongs[0]; pong !== undefined && pong.atUs <= nowUs; pong = pongs[0]) {
      window.acknowledged(pong.value, pong.atUs)
      pongs.shift()
    }
  }

  function sendChunk(room: number, next: PageOrder['nextScanned']): void {
    let sent = 0
    while (sent < room && next(Math.ceil((room - sent) / TARGET_PAGE_BYTES))) sent += send()
    window.sent(chunk, sent, nowUs)
    pongs.push({ value: chunk++, atUs: linkFreeUs + 2 * oneWayUs })
  }

  /** When the scan may go. */
  function politeUs(): number {
    const waitMs = yielding.waitMs(nowUs / 1000)
    return waitMs === 0 ? nowUs : nowUs + waitMs * 1000 + wakeUs
  }

  /** The push, as `source/push.ts` does it, up to `untilUs`. */
  function pushUntil(untilUs: number): void {
    for (;;) {
      hearPongs()
      const likely = spec !== undefined && order.anyLikely()
      if (spec === undefined || (!likely && !order.anyScanned())) break
      const room = window.room(yielding.asking(nowUs / 1000))
      const readyUs = likely ? Math.max(nowUs, loadedUs) : politeUs()
      const nextUs = room > 0 ? readyUs : Math.max(readyUs, pongs[0]!.atUs)
      if (nextUs >= untilUs) break
      nowUs = nextUs
      if (room === 0) continue
      if (likely) sendChunk(Math.max(room, LIKELY_BYTES), order.nextLikely)
      else sendChunk(room, order.nextScanned)
    }
    nowUs = Math.max(nowUs, Math.min(untilUs, Number.MAX_VALUE))
  }

  /** What goes before the guest may run: it finds it there. */
  function sendAhead(): void {
    while (linkFreeUs < conditions.aheadMs * 1000 && order.nextLikely(LOOK_PAGES)) send()
    for (const page of thereUs.keys()) thereUs.set(page, 0)
    linkFreeUs = 0
  }

  if (spec !== undefined) sendAhead()
  return {
    touch(page, atUs) {
      const heardUs = atUs + oneWayUs
      pushUntil(heardUs)
      const known = thereUs.get(page)
      if (known !== undefined && known <= atUs) return atUs
      const { index, firstPage } = blockOfPage(blocks, page)
      yielding.noteRequest(heardUs / 1000)
      order.request(index, page - firstPage, 1)
      if (order.nextRequested()) send()
      if (window.windowBytes() >= NEAR_WINDOW_BYTES_MIN) while (order.nextNear()) send()
      return thereUs.get(page)!
    },
    drain() {
      if (spec === undefined) return undefined
      pushUntil(Number.POSITIVE_INFINITY)
      return linkFreeUs + oneWayUs
    },
    get bytes() {
      return bytes
    },
  }
}
