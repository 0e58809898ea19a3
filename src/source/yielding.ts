// When the push gives way to a guest that asks for pages. Pure; source thread.
//
// A guest that has just woken up asks for a few hundred pages and then for few: there the push best waits until it has
// them. A guest that goes through all of its memory never ceases to ask: there every page that is pushed spares a
// request, and a push that waits leaves it to fault its way through gigabytes. Nobody knows beforehand which it will be.
// So the push waits for a quiet moment, and has only so much patience: waiting uses it up, and time in which the push
// may go restores it. In the long run the push has half of the time at least.

export interface YieldingOptions {
  /** The push goes when this long nobody has asked for a page, ms; 0: it never waits. */
  readonly quietMs: number
  /** How long it waits for that without a pause, at most, ms. */
  readonly patienceMs: number
}

export interface Yielding {
  /** A page was asked for, or is about to be. */
  asked(nowMs: number): void
  /** How long the push should wait from now on, ms; 0: it may go. To be called at each turn: time is counted by it. */
  waitMs(nowMs: number): number
}

export function createYielding({ quietMs, patienceMs }: YieldingOptions): Yielding {
  let askedMs = Number.NEGATIVE_INFINITY
  let patience = patienceMs
  let waits = false
  let lastMs: number | undefined

  return {
    asked(nowMs) {
      askedMs = nowMs
    },
    waitMs(nowMs) {
      const passedMs = nowMs - (lastMs ?? nowMs)
      lastMs = nowMs
      patience = Math.min(patienceMs, waits ? patience - passedMs : patience + passedMs)
      const quietMsLeft = Math.min(askedMs + quietMs - nowMs, patience)
      waits = quietMsLeft > 0
      return waits ? Math.ceil(quietMsLeft) : 0
    },
  }
}
