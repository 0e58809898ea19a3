// How much of its time the guest may stand still because of what is pushed. Pure; source thread.
//
// The source sees each page request, and knows from the PONGs how long what it sends now takes to arrive: together that is
// how long a guest thread waits. When that comes to more than the budget, the push gets a smaller share of the time, and
// a larger one when it comes to less. It always keeps a little: pages that are in are pages that nobody waits for.

export interface StallBudget {
  /** Guest threads wait `ms` for what was just sent, all together. */
  waited(ms: number): void
  /** How long the push should pause, ms; 0: it may go. To be called at each turn: time is counted by it. */
  pauseMs(nowMs: number): number
  /** All of it so far, ms. */
  waitedMs(): number
  /** Time in which the budget was not kept although the push had the least it can have, ms. */
  missedMs(): number
}

/** Over what the blocked share is taken. */
const INTERVAL_MS = 250
/** The push goes in the first part of each slot. */
const SLOT_MS = 16
const SHARE_MIN = 1 / 8

/** @param msPerSecond what guest threads may wait, ms in each second; Infinity: as long as it takes. */
export function createStallBudget(msPerSecond: number): StallBudget {
  let share = 1
  let waitedMs = 0
  let missedMs = 0
  let waitedBefore = 0
  let sinceMs: number | undefined

  function judge(passedMs: number): void {
    const over = ((waitedMs - waitedBefore) / passedMs) * 1000 > msPerSecond
    if (over && share === SHARE_MIN) missedMs += passedMs
    share = over ? Math.max(SHARE_MIN, share / 2) : Math.min(1, share + SHARE_MIN)
    waitedBefore = waitedMs
  }

  return {
    waitedMs: () => waitedMs,
    missedMs: () => missedMs,
    waited(ms) {
      waitedMs += ms
    },
    pauseMs(nowMs) {
      sinceMs ??= nowMs
      if (nowMs - sinceMs >= INTERVAL_MS) {
        judge(nowMs - sinceMs)
        sinceMs = nowMs
      }
      const phaseMs = nowMs % SLOT_MS
      return phaseMs < share * SLOT_MS ? 0 : Math.ceil(SLOT_MS - phaseMs)
    },
  }
}
