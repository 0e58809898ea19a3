// How much background data may be on its way unacknowledged. Pure; used by the source thread.
//
// A page that the guest waits for queues behind whatever was pushed before it. So the push goes out in chunks, each
// followed by a PING, and the round trip of the PING says how long the queue is: near the shortest ever seen, the window
// grows and a fast link fills; a millisecond above it, the queue is longer than a fault should wait, and it shrinks.

const CHUNK_BYTES_MIN = 16 * 1024
const CHUNK_BYTES_MAX = 256 * 1024
const WINDOW_BYTES_MIN = CHUNK_BYTES_MIN
const WINDOW_BYTES_START = 256 * 1024
const WINDOW_BYTES_MAX = 64 * 1024 * 1024
/** Queue that is tolerated: a millisecond, or on a link with delay a quarter of what a fault takes there anyway. */
const QUEUE_US_MAX = 1000
const QUEUE_ROUND_TRIPS_MAX = 0.25
const SLOW_ROUND_TRIP_US = 2000

export interface PushWindow {
  /** Bytes a chunk may have now: a quarter of the window, within bounds; 0 when the window is full. */
  room(): number
  /** A chunk of `bytes` went out at `nowUs`, followed by PING `value`. */
  sent(value: number, bytes: number, nowUs: number): void
  /** PONG `value` came: that chunk has arrived, and so have all that went before it. What answers no chunk says nothing. */
  acknowledged(value: number, nowUs: number): void
  readonly windowBytes: number
  /** A round trip is so long that a lost packet is worth a second copy of a page that somebody waits for. */
  readonly isSlow: boolean
}

export function createPushWindow(): PushWindow {
  const flying = new Map<number, { bytes: number; sentUs: number; full: boolean }>()
  let flyingBytes = 0
  let windowBytes = WINDOW_BYTES_START
  let roundTripUsMin = Number.POSITIVE_INFINITY
  // The queue answers a smaller window one round trip later: chunks sent before the last cut do not count.
  let cutAtUs = 0
  let everCut = false

  function adapt(chunk: { bytes: number; sentUs: number; full: boolean }, nowUs: number): void {
    const roundTripUs = nowUs - chunk.sentUs
    roundTripUsMin = Math.min(roundTripUsMin, roundTripUs)
    const queueUsMax = Math.max(QUEUE_US_MAX, roundTripUsMin * QUEUE_ROUND_TRIPS_MAX)
    if (roundTripUs - roundTripUsMin > queueUsMax) {
      if (chunk.sentUs < cutAtUs) return
      windowBytes = Math.max(WINDOW_BYTES_MIN, windowBytes * 0.75)
      cutAtUs = nowUs
      everCut = true
    } else if (chunk.full) {
      // Twice as much a round trip until the first queue was seen, then a chunk more each round trip.
      const growth = everCut ? (chunk.bytes * chunk.bytes) / windowBytes : chunk.bytes
      windowBytes = Math.min(WINDOW_BYTES_MAX, windowBytes + growth)
    }
  }

  return {
    get windowBytes() {
      return windowBytes
    },
    get isSlow() {
      return roundTripUsMin >= SLOW_ROUND_TRIP_US
    },
    room() {
      if (flyingBytes >= windowBytes) return 0
      return Math.max(CHUNK_BYTES_MIN, Math.min(CHUNK_BYTES_MAX, windowBytes / 4))
    },
    sent(value, bytes, nowUs) {
      flyingBytes += bytes
      flying.set(value, { bytes, sentUs: nowUs, full: flyingBytes >= windowBytes })
    },
    acknowledged(value, nowUs) {
      const chunk = flying.get(value)
      if (chunk === undefined) return
      for (const [earlier, { bytes }] of flying) {
        if (earlier > value) break // in the order in which they were sent
        flying.delete(earlier)
        flyingBytes -= bytes
      }
      adapt(chunk, nowUs)
    },
  }
}
