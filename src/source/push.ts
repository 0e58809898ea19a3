// After the switch: requested pages at once, and the rest of RAM in the background, in chunks that never fill the queue
// in front of a request. Source thread.

import { ChannelError } from '../errors.js'
import { monotonicUs } from '../os/clock.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { encodeCommand } from '../wire/messages.js'
import { END_OF_STREAM } from '../wire/sections.js'
import { type Outgoing, PING, remainingBytes, sendPick, sentBytes, serveRequests } from './outgoing.js'

/** Returns when every page has gone out and the stream is ended. */
export function pushRemaining(o: Outgoing): void {
  let chunk = PING.chunks as number
  const left = remainingBytes(o) + pagesSent(o) * TARGET_PAGE_BYTES
  o.link.pump(0)
  for (;;) {
    serveRequests(o)
    report(o, left)
    if (!o.order.anyScanned()) break
    const room = o.window.room()
    const nowMs = o.link.wokenMs
    const pauseMs = Math.max(o.pacer.waitMs(nowMs), quietMsLeft(o, nowMs))
    if (room > 0 && pauseMs === 0) {
      confirmed(o, chunk++, pushChunk(o, room))
      o.link.pump(0)
    } else if (pauseMs > 0) {
      o.link.pump(pauseMs)
    } else if (!o.link.pumpPeer('to confirm pages that were pushed (PONG)')) {
      confirmed(o, chunk++, 0) // what was said before may have been lost on the other side
    }
  }
  o.sender.endSection(() => {})
  o.sender.control(END_OF_STREAM)
  o.sender.flush()
  endUrgent(o)
  report(o, left)
}

/** A PING behind what was pushed: its answer says that all of it has been taken in. */
function confirmed(o: Outgoing, chunk: number, bytes: number): void {
  o.sender.control(encodeCommand({ name: 'PING', value: chunk }))
  o.window.sent(chunk, bytes, monotonicUs())
  o.sender.flush()
}

/** A destination that has everything may have closed that channel already. */
function endUrgent(o: Outgoing): void {
  if (o.urgent === o.sender) return
  o.urgent.endChannel()
  try {
    o.urgent.flush()
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
  }
}

/** A guest that asks for pages waits for them: the rest can wait until it does not. */
function quietMsLeft(o: Outgoing, nowMs: number): number {
  return Math.max(0, Math.ceil(o.lastRequestMs + o.options.push.quietMs - nowMs))
}

/** Only what is asked for, until the destination goes away: it never has all of RAM, so there is no other end. */
export function serveOnDemand(o: Outgoing): void {
  for (;;) {
    serveRequests(o)
    o.stats.bytesSent = sentBytes(o)
    try {
      o.link.pump(-1)
    } catch (error) {
      if (error instanceof ChannelError && o.pongs.has(PING.loaded)) return
      throw error
    }
  }
}

/** The next pages of the scan, up to `room` bytes. Returns the bytes. */
function pushChunk(o: Outgoing, room: number): number {
  const start = o.sender.bytes
  while (o.sender.bytes - start < room && o.order.nextScanned()) sendPick(o)
  return o.sender.bytes - start
}

const pagesSent = (o: Outgoing): number => o.stats.pagesNormal + o.stats.pagesZero

/** @param total bytes of RAM sent when nothing is left, from the start of the migration. */
function report(o: Outgoing, total: number): void {
  o.stats.bytesSent = sentBytes(o)
  o.stats.windowBytes = o.window.windowBytes
  o.stats.bytesRemaining = total - pagesSent(o) * TARGET_PAGE_BYTES
}
