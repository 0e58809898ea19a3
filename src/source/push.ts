// After the switch: requested pages at once, and the rest of RAM in the background, in chunks that never fill the queue
// in front of a request. Source thread.

import { ChannelError } from '../errors.js'
import { LIKELY_CHUNK_PAGES, LIKELY_HOLD_MS, LOOK_PAGES } from '../order/orders.js'
import type { PageOrder } from '../order/page-order.js'
import { monotonicMs, monotonicUs } from '../os/clock.js'
import { RUN_PAGES, TARGET_PAGE_BYTES } from '../ram/block.js'
import { createPing } from '../wire/messages.js'
import { END_OF_STREAM } from '../wire/sections.js'
import { type Outgoing, PING, remainingBytes, sentBytes } from './outgoing.js'
import { sendPick, serveBeside, serveRequests } from './send-pages.js'

const LIKELY_BYTES = LIKELY_CHUNK_PAGES * TARGET_PAGE_BYTES

const LOOK_BYTES = LOOK_PAGES * TARGET_PAGE_BYTES

const ping = createPing()

/** The first of what is likely to be asked for, before the guest may run. What the destination is to discard must be discarded. */
export function pushAhead(o: Outgoing): void {
  o.pacer.bytesPerSecond = o.options.maxPostcopyBandwidth // nobody has asked for them, either
  const endMs = monotonicMs() + o.options.push.aheadMs
  while (o.order.anyLikely()) {
    const nowMs = monotonicMs()
    const pauseMs = o.pacer.waitMs(nowMs)
    if (nowMs + pauseMs >= endMs) break
    if (pauseMs > 0) {
      o.link.pump(pauseMs)
      continue
    }
    const room = o.window.room(true) // what is on its way then, the guest waits for
    if (room > 0) confirmed(o, pushChunk(o, room, o.order.nextLikely, false))
    o.link.pump(room > 0 ? 0 : Math.ceil(endMs - nowMs))
  }
}

/** Returns when every page has gone out and the stream is ended. */
export function pushRemaining(o: Outgoing): void {
  const left = remainingBytes(o) + pagesSent(o) * TARGET_PAGE_BYTES
  o.link.pump(0)
  for (;;) {
    serveRequests(o)
    report(o, left)
    if (!o.order.anyScanned()) break
    const nowMs = o.link.wokenMs()
    const asked = o.yielding.asking(nowMs)
    const room = o.window.room(asked)
    const likely = o.order.anyLikely()
    const pauseMs = Math.max(o.pacer.waitMs(nowMs), likely ? loadMsLeft(o, nowMs) : politeMs(o, nowMs))
    if (room > 0 && pauseMs === 0) {
      const bytes = likely
        ? pushChunk(o, Math.max(room, LIKELY_BYTES), o.order.nextLikely, asked)
        : pushChunk(o, room, o.order.nextScanned, asked)
      confirmed(o, bytes)
      o.link.pump(0)
    } else if (pauseMs > 0) {
      o.link.pump(pauseMs)
    } else if (!o.link.pumpPeer('to confirm pages that were pushed (PONG)')) {
      confirmed(o, 0) // what was said before may have been lost on the other side
    }
  }
  o.sender.endSection(() => {})
  o.pongs.delete(PING.all) // of a connection that was lost
  o.sender.control(ping(PING.all))
  o.sender.control(END_OF_STREAM)
  o.sender.flush()
  report(o, left)
}

/** A PING behind what was pushed: its answer says that all of it has been taken in. */
function confirmed(o: Outgoing, bytes: number): void {
  const chunk = PING.chunks + o.chunks++
  o.sender.control(ping(chunk))
  o.window.sent(chunk, bytes, monotonicUs())
  o.sender.flush()
}

/** So long after it has said that it has all, and nothing more was heard, the destination has taken in the end; at most so long, ms. */
const LAST_QUIET_MS = 50
const LAST_MS_MAX = 1000

/**
 * Zero pages may not have gone, and the guest asks for them until the destination has taken in the end of the stream. Over
 * the other connection they still go: QEMU 10.0 waits for what it has asked for. Then that one ends, too: QEMU 7.2 waits for
 * its end, but where 10.0 reads it first, whoever asks for a page then waits for ever.
 */
export function serveBehindTheEnd(o: Outgoing): void {
  if (o.urgent === o.sender) return
  const { link, origin, pongs } = o
  while (link.shut() === undefined) {
    ifTaken(() => serveBeside(o))
    if (origin.pushZeroPages) break
    const allUs = pongs.get(PING.all)
    if (allUs === undefined) link.pumpPeer('to confirm that it has everything (PONG)')
    else if (hearsNothing(o) || monotonicUs() > allUs + LAST_MS_MAX * 1000) break
  }
  ifTaken(() => endUrgent(o))
}

function hearsNothing({ link }: Outgoing): boolean {
  const startMs = monotonicMs()
  link.pump(LAST_QUIET_MS)
  return link.wokenMs() - startMs >= LAST_QUIET_MS
}

function endUrgent(o: Outgoing): void {
  o.urgent.endChannel()
  o.urgent.flush()
}

/** A destination that has everything may have closed that channel already. */
function ifTaken(send: () => void): void {
  try {
    send()
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
  }
}

/** What nobody needs yet gives way to the guest. */
const politeMs = (o: Outgoing, nowMs: number): number =>
  Math.max(o.yielding.waitMs(nowMs), o.stall?.pauseMs(nowMs) ?? 0)

/** What is likely to be asked for does not wait until nothing is; but the guest has no use for it before it runs. */
const loadMsLeft = (o: Outgoing, nowMs: number): number =>
  o.pongs.has(PING.loaded) ? 0 : Math.max(0, Math.ceil(o.committedMs + LIKELY_HOLD_MS - nowMs))

/**
 * Only what is asked for, until the destination goes away: it never has all of RAM, so there is no other end.
 * @throws ChannelError for that end as well, where it may be a loss that is recovered from
 */
export function serveOnDemand(o: Outgoing, recovers: boolean): void {
  for (;;) {
    serveRequests(o)
    o.stats.bytesSent = sentBytes(o)
    try {
      o.link.pump(o.recorder?.settle(o.link.wokenMs()) ?? -1)
    } catch (error) {
      if (error instanceof ChannelError && o.pongs.has(PING.loaded) && !recovers) return
      throw error
    }
  }
}

/** The next pages: `room` bytes, and what is left of the last run. Returns the bytes. */
function pushChunk(o: Outgoing, room: number, next: PageOrder['nextScanned'], asked: boolean): number {
  const start = o.sender.bytes()
  const most = asked ? LOOK_PAGES : RUN_PAGES
  let looked = start
  for (let left = room; left > 0; left = room - (o.sender.bytes() - start)) {
    if (looked + LOOK_BYTES <= o.sender.bytes()) {
      looked = o.sender.bytes()
      o.link.look()
      serveRequests(o)
    }
    if (!next(Math.min(most, Math.ceil(left / TARGET_PAGE_BYTES)))) break
    sendPick(o)
  }
  return o.sender.bytes() - start
}

const pagesSent = (o: Outgoing): number => o.stats.pagesNormal + o.stats.pagesZero

/** @param total bytes of RAM sent when nothing is left, from the start of the migration. */
function report(o: Outgoing, total: number): void {
  o.stats.bytesSent = sentBytes(o)
  o.stats.windowBytes = o.window.windowBytes()
  o.stats.bytesRemaining = total - pagesSent(o) * TARGET_PAGE_BYTES
}
