// Requests that wait, first come, first served. Pure; source thread.

import { LIMITS } from '../limits.js'
import type { Place } from './place.js'

export interface Requests {
  /** Requests waiting (some may be for pages that have gone already). */
  queued(): number
  /** False when the queue is full: stop reading requests until it has drained. */
  add(blockIndex: number, page: number, pages: number): boolean
  /** The next page that was asked for, into `place`, and out of the queue. False when there is none. */
  next(place: Place): boolean
}

export function createRequests(): Requests {
  // A ring: three numbers each, no objects.
  const capacity = LIMITS.requestQueueMax
  const ring = new Uint32Array(capacity * 3)
  let head = 0
  let queued = 0
  return {
    queued: () => queued,
    add(blockIndex, page, pages) {
      if (queued === capacity) return false
      const at = ((head + queued) % capacity) * 3
      ring[at] = blockIndex
      ring[at + 1] = page
      ring[at + 2] = pages
      queued++
      return true
    },
    next(place) {
      if (queued === 0) return false
      const at = head * 3
      place.blockIndex = ring[at]!
      place.page = ring[at + 1]!
      place.pages = 1
      if (ring[at + 2]! > 1) {
        ring[at + 1]!++
        ring[at + 2]!--
      } else {
        head = (head + 1) % capacity
        queued--
      }
      return true
    },
  }
}
