// When the push gives way to a guest that asks for pages. Pure; source thread.
//
// A guest that has just woken up asks for a few hundred pages and then for few: there the push best waits until it has
// them. A guest that goes through all of its memory never ceases to ask: there every page that is pushed spares a
// request, and a push that waits leaves it to fault its way through gigabytes. Nobody knows beforehand which it will be.
// So the push waits for a quiet moment, and has only so much patience: waiting uses it up, and so do requests, for where each
// brings its neighbours a guest that wakes up does with few; quiet restores it. Once it is used up the push goes on among the
// requests until all of it is back.

import { bringsNeighbours, type OrderSpec } from '../order/orders.js'

export interface YieldingOptions {
  /** The push goes when this long nobody has asked for a page, ms; 0: it never waits. */
  readonly quietMs: number
  /** How long it waits for quiet, ms. */
  readonly patienceMs: number
  /** Requests use that up as well as time does, `REQUESTS_PER_MS`. See `requestsTireWhere`. */
  readonly requestsTire: boolean
}

/**
 * Before it first says something, an idle guest asks for 46 to 65 pages here, in 60 ms, or in 100 where they come from disk; one
 * that goes through its memory has asked for 100 after 60 ms, and goes on.
 */
const REQUESTS_PER_MS = 1

/** What suits a guest that wakes up. */
export const YIELDING = {
  quietMs: 10,
  patienceMs: 100,
  requestsTire: true,
} as const satisfies YieldingOptions
/** What suits a guest that runs on the other side as soon as it can: each page that it does not ask for is one less to wait for. */
export const NEVER_YIELDING = {
  quietMs: 0,
  patienceMs: 0,
  requestsTire: false,
} as const satisfies YieldingOptions
/** Where each page is asked for, or none may be hidden, many requests say nothing of the guest. */
export const requestsTireWhere = (order: OrderSpec, keeps: boolean): boolean =>
  bringsNeighbours(order) && !keeps
/** Where a guest was given first what it needs it has work to do meanwhile, and a push would take processors from it: then longer, ms. */
export const quietMsWhere = (recordedFirst: boolean): number => (recordedFirst ? 50 : YIELDING.quietMs)
/** Where it is noted what the guest asks for: what is pushed meanwhile hides that, and later runs live by it. */
export const RECORDING_PATIENCE_MS = 500

export interface Yielding {
  /** A page was asked for, or is about to be. */
  noteRequest(nowMs: number): void
  /** A page was asked for just now, and the next may be. */
  asking(nowMs: number): boolean
  /** How long the push should wait from now on, ms; 0: it may go. To be called at each turn: time is counted by it. */
  waitMs(nowMs: number): number
}

/** From one request to the next of a guest that is at it, ms. */
const ASKING_MS = 5

export function createYielding({ quietMs, patienceMs, requestsTire }: YieldingOptions): Yielding {
  let requestMs = Number.NEGATIVE_INFINITY
  let patience = patienceMs
  let requests = 0 // that it has put up with
  let spent = false
  let lastMs: number | undefined

  return {
    noteRequest(nowMs) {
      requestMs = nowMs
      if (requestsTire && !spent) requests++
    },
    asking: (nowMs) => nowMs - requestMs < ASKING_MS,
    waitMs(nowMs) {
      const passedMs = nowMs - (lastMs ?? nowMs)
      lastMs = nowMs
      const untilQuietMs = requestMs + quietMs - nowMs
      if (untilQuietMs <= 0) {
        patience = Math.min(patienceMs, patience + passedMs)
        requests = Math.max(0, requests - passedMs * REQUESTS_PER_MS)
      } else if (!spent) {
        patience -= passedMs
      }
      if (patience <= 0 || requests >= patienceMs * REQUESTS_PER_MS) spent = true
      else if (patience === patienceMs && requests === 0) spent = false
      return untilQuietMs <= 0 || spent ? 0 : Math.ceil(Math.min(untilQuietMs, patience))
    },
  }
}
