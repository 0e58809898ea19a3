// How much background data may be on its way unacknowledged. Pure; used by the source thread.
//
// A page that the guest waits for queues behind whatever was pushed before it. So the push goes out in chunks, each
// followed by a PING, and the PONGs tell two things: the shortest round trip there is, and the highest rate at which
// chunks have arrived of late. Their product is what the link holds without a queue; the window is that, and the queue that
// is tolerated. A PONG that is late because a machine is busy says nothing about the link, so it is the highest rate that
// counts: a window that shrank with each late PONG would leave a fast link idle.

import { LONG_ROUND_TRIP_US } from '../wire/urgent.js'

const CHUNK_BYTES_MIN = 16 * 1024
const CHUNK_BYTES_MAX = 256 * 1024
/** While nobody asks: a chunk costs as much as many pages do. */
const CHUNK_BYTES_UNASKED_MAX = 1024 * 1024
const WINDOW_BYTES_MIN = CHUNK_BYTES_MIN
const WINDOW_BYTES_START = 256 * 1024
const WINDOW_BYTES_MAX = 64 * 1024 * 1024
/**
 * Queue that is tolerated: a page that is asked for waits behind it, or is in it already. On a link with delay it is a quarter of
 * what a fault takes there anyway.
 */
const QUEUE_US_MAX = 150
const QUEUE_ROUND_TRIPS_MAX = 0.25
/** What it may be longer while nobody asks for pages. */
const QUEUE_UNASKED_US = 3000
/** The highest rate is forgotten after one to two of these. */
const EPOCH_US = 100_000

export interface PushWindow {
  /**
   * Bytes a chunk may have now: a quarter of what may be on its way, within bounds; 0 when so much is.
   * `asked`: the guest is asking for pages, and they would have to wait.
   */
  room(asked: boolean): number
  /** A chunk of `bytes` went out at `nowUs`, followed by PING `value`: a higher one each time. */
  sent(value: number, bytes: number, nowUs: number): void
  /** PONG `value` came: that chunk has arrived, and so have all that went before it. What answers no chunk says nothing. */
  acknowledged(value: number, nowUs: number): void
  windowBytes(): number
  /** A round trip is so long that a lost packet is worth a second copy of a page that somebody waits for. */
  isSlow(): boolean
  /** How long what is sent now takes until it is confirmed, µs: as the last chunk did, or without a queue; 0 before any was. */
  roundTripUs(): number
  /** How fast the destination takes what is pushed: bytes a second while any are on their way; 0 before any have arrived. */
  bytesPerSecond(): number
}

interface Chunk {
  readonly value: number
  readonly bytes: number
  readonly sentUs: number
  /** The window was full with it: how fast it arrives is the link's doing, not ours. */
  readonly full: boolean
  /** All that had arrived when it was sent, and when that was known. */
  readonly arrivedBytes: number
  readonly arrivedUs: number
}

export function createPushWindow(): PushWindow {
  const flying: Chunk[] = [] // in the order in which they were sent
  const rate = createRecentMaximum()
  let flyingBytes = 0
  let arrivedBytes = 0
  let arrivedUs = 0
  let busyUs = 0
  let windowBytes = WINDOW_BYTES_START
  let roundTripUsMin = Number.POSITIVE_INFINITY
  let roundTripUsLast = 0

  function adapt(chunk: Chunk, nowUs: number): void {
    const roundTripUs = nowUs - chunk.sentUs
    roundTripUsLast = roundTripUs
    roundTripUsMin = Math.min(roundTripUsMin, roundTripUs)
    const bytesPerUs = (arrivedBytes - chunk.arrivedBytes) / Math.max(1, nowUs - chunk.arrivedUs)
    if (!chunk.full && bytesPerUs <= rate.value()) return
    rate.add(bytesPerUs, nowUs)
    const queueUsMax = Math.max(QUEUE_US_MAX, roundTripUsMin * QUEUE_ROUND_TRIPS_MAX)
    const noQueue = roundTripUs - roundTripUsMin < queueUsMax / 4
    // As long as nothing queues, twice as much a round trip.
    const wanted = noQueue ? windowBytes + chunk.bytes : rate.value() * (roundTripUsMin + queueUsMax)
    windowBytes = Math.min(WINDOW_BYTES_MAX, Math.max(WINDOW_BYTES_MIN, wanted))
  }

  return {
    windowBytes: () => windowBytes,
    isSlow: () => roundTripUsMin >= LONG_ROUND_TRIP_US,
    roundTripUs: () => (flying.length > 0 ? roundTripUsLast : Math.min(roundTripUsLast, roundTripUsMin)),
    bytesPerSecond: () => (busyUs === 0 ? 0 : (arrivedBytes / busyUs) * 1e6),
    room(asked) {
      const bytes = asked ? windowBytes : windowBytes + rate.value() * QUEUE_UNASKED_US
      if (flyingBytes >= bytes) return 0
      const most = asked ? CHUNK_BYTES_MAX : CHUNK_BYTES_UNASKED_MAX
      return Math.max(CHUNK_BYTES_MIN, Math.min(most, bytes / 4))
    },
    sent(value, bytes, nowUs) {
      if (flying.length === 0) arrivedUs = nowUs
      flyingBytes += bytes
      const full = flyingBytes >= windowBytes
      flying.push({ value, bytes, sentUs: nowUs, full, arrivedBytes, arrivedUs })
    },
    acknowledged(value, nowUs) {
      if (flying.length === 0 || value > flying[flying.length - 1]!.value) return
      let chunk: Chunk | undefined
      while (flying.length > 0 && flying[0]!.value <= value) {
        chunk = flying.shift()!
        flyingBytes -= chunk.bytes
        arrivedBytes += chunk.bytes
      }
      if (chunk === undefined) return
      busyUs += nowUs - arrivedUs
      arrivedUs = nowUs
      adapt(chunk, nowUs)
    },
  }
}

/** The highest of the values that were added within the last epoch, and the one before. */
function createRecentMaximum() {
  let before = 0
  let current = 0
  let sinceUs = 0
  return {
    value: () => Math.max(before, current),
    add(value: number, nowUs: number) {
      if (nowUs - sinceUs > EPOCH_US) {
        before = current
        current = 0
        sinceUs = nowUs
      }
      current = Math.max(current, value)
    },
  }
}
