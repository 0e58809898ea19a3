// Pages go into the senders: those that the order has picked, and all that are asked for. Source thread.

import { NEAR_WINDOW_BYTES_MIN } from '../order/orders.js'
import { monotonicUs } from '../os/clock.js'
import type { Extent } from './origin.js'
import type { Outgoing } from './outgoing.js'
import type { Sender } from './sender.js'

const NOTHING: Extent = { address: 0, pages: 1, lasting: false }

/** Puts the pages that `order` has picked into a sender. `again`: they have been put into the other one, too. */
export function sendPick(o: Outgoing, sender: Sender = o.sender, again = false): void {
  const { blockIndex, page, pages, reason } = o.order.pick
  const counts = !again && reason !== 'repeated'
  const block = o.blocks[blockIndex]!
  const populated = o.populated[blockIndex]!
  const before = sender.bytes()
  const end = page + pages
  let zero = 0
  for (let p = page; p < end; ) {
    const holding = populated.nextClear(p, end) - p
    // Copied: while these wait for room in the socket, what is asked for is read as well, into the same extent.
    const {
      address,
      pages: count,
      lasting,
    } = holding === 0 ? NOTHING : o.origin.read(block, p, holding, sender !== o.sender)
    if (address === 0) {
      for (let i = 0; i < count; i++) sender.zeroPage(block, p + i)
      zero += count
    } else {
      sender.pages(block, p, count, address, lasting)
    }
    p += count
  }
  if (counts) {
    o.stats.pagesZero += zero
    o.stats.pagesNormal += pages - zero
  }
  if (reason === 'requested' && counts) o.stats.pagesRequested += pages
  else if (reason === 'likely') o.stats.pagesLikely += pages
  o.pacer.charge(sender.bytes() - before)
}

/** All that is asked for now goes out in one call; what is asked meanwhile is next. */
export function serveRequests(o: Outgoing): void {
  if (o.order.queued() === 0) return
  const { pick } = o.order
  const before = o.stats.pagesRequested
  let twice = false
  while (o.order.nextRequested()) {
    sendPick(o, o.urgent)
    if (o.urgent === o.sender || !o.mayRepeat(pick.blockIndex, pick.page)) continue
    // Where a lost packet costs a guest long, over the other connection as well: seldom is it lost on both.
    sendPick(o, o.sender, true)
    twice = true
  }
  flushSection(o.urgent)
  o.stall?.waited((o.stats.pagesRequested - before) * waitMs(o))
  if (mayGoAlong(o) && o.order.nextNear()) sendNear(o)
  if (twice) flushSection(o.sender)
}

function flushSection(sender: Sender): void {
  sender.closeSection()
  sender.flush()
}

/** The guest runs on meanwhile: whatever is put together before its page has gone, it waits for. */
function sendNear(o: Outgoing): void {
  do sendPick(o, o.urgent)
  while (o.order.nextNear())
  flushSection(o.urgent)
}

/** What is pushed has to wait for room; what is asked for meanwhile goes out beside it. */
export function serveBeside(o: Outgoing): void {
  if (o.urgent === o.sender || o.order.queued() === 0) return
  while (o.order.nextRequested()) sendPick(o, o.urgent)
  o.urgent.flush()
}

/** Nobody asked for it, but it would be late in the next chunk. */
const mayGoAlong = ({ pacer, link, window }: Outgoing): boolean =>
  window.windowBytes() >= NEAR_WINDOW_BYTES_MIN && pacer.waitMs(link.wokenMs()) === 0

/** How long somebody waits for a page that was asked for when `pump` woke up, and is sent now. */
const waitMs = (o: Outgoing): number =>
  monotonicUs() / 1000 - o.link.wokenMs() + o.window.roundTripUs() / 1000
