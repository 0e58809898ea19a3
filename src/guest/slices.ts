// Runs a guest that is plain JavaScript in slices of the event loop, so that its thread hears messages in between.
// Guest thread.

/** Long enough to be cheap, short enough that a stop takes about a millisecond. */
const SLICE_MS = 0.5
/** A guest with a rate that has been stalled does not make up for more than this. */
const CATCH_UP_MS = 10

export interface Slices {
  start(): void
  /** When it returns, no step runs any more. */
  stop(): void
}

/**
 * `step` does one small piece of work and returns false when there is none left. `stepsPerSecond` limits the rate;
 * undefined is flat out. What `step` throws goes to `failed`, and it is not called again.
 */
export function createSlices(
  step: () => boolean,
  failed: (error: Error) => void,
  stepsPerSecond?: number,
): Slices {
  let turn = 0
  /** Time from which steps are due, milliseconds; only with a rate. */
  let paidUntilMs = 0

  function dueSteps(nowMs: number): number {
    if (stepsPerSecond === undefined) return Number.POSITIVE_INFINITY
    paidUntilMs = Math.max(paidUntilMs, nowMs - CATCH_UP_MS)
    const due = Math.floor(((nowMs - paidUntilMs) * stepsPerSecond) / 1000)
    paidUntilMs += (due * 1000) / stepsPerSecond
    return due
  }

  function slice(thisTurn: number): void {
    if (thisTurn !== turn) return
    const startMs = performance.now()
    const due = dueSteps(startMs)
    try {
      for (let done = 0; done < due; done++) {
        if (!step()) return
        if (performance.now() - startMs > SLICE_MS) break
      }
    } catch (error) {
      failed(error as Error)
      return
    }
    // A guest that is ahead of its rate sleeps; the others must not wait for a timer.
    if (due === 0) setTimeout(slice, 1, thisTurn)
    else setImmediate(slice, thisTurn)
  }

  return {
    start() {
      paidUntilMs = performance.now()
      setImmediate(slice, ++turn)
    },
    stop() {
      turn++
    },
  }
}
