// How long guest threads stood still: a slot for each thread, in shared memory, written by the destination thread. A wait
// begins when its fault is read, and ends when its page is placed.

import { LIMITS } from '../limits.js'

const SLOTS = LIMITS.blocktimeThreadsMax
/** Buckets of the latency histogram: eight to an octave of microseconds, up to 2^31 µs and more. */
const STEPS_PER_OCTAVE = 8
const OCTAVES = 32
const BUCKETS = STEPS_PER_OCTAVE * OCTAVES

/** Int32 cells, then Float64 cells. */
const CELLS = {
  used: 0,
  blocked: 1,
  faults: 2,
  states: 3,
  threads: 3 + SLOTS,
  buckets: 3 + 2 * SLOTS,
} as const
const CELL_COUNT = Math.ceil((CELLS.buckets + BUCKETS) / 2) * 2
const TIMES = {
  lastStart: 0,
  overlapped: 1,
  max: 2,
  sum: 3,
  pages: 4,
  starts: 4 + SLOTS,
  totals: 4 + 2 * SLOTS,
} as const
const TIME_COUNT = 4 + 3 * SLOTS

export const BLOCKTIME_BYTES = CELL_COUNT * 4 + TIME_COUNT * 8

export interface Blocktime {
  /** Thread `threadId` waits for `page` (number in the flat page map) since `nowUs`. */
  begin(threadId: number, page: number, nowUs: number): void
  /** Pages [page, page + pages) are there: ends the waits for them. */
  end(page: number, pages: number, nowUs: number): void
  report(): BlocktimeReport
}

export interface BlocktimeReport {
  readonly faults: number
  /** Time in which all guest threads seen so far were blocked at once, ms. */
  readonly overlappedMs: number
  /** By kernel thread id, ms. */
  readonly byThreadMs: Readonly<Record<string, number>>
  readonly latencyUs: { readonly p50: number; readonly p99: number; readonly max: number }
  /** `histogramUs[i]`: waits of 2^i to 2^(i+1) µs (the first also holds shorter ones). Trailing zeros are left out. */
  readonly histogramUs: readonly number[]
}

export function createBlocktime(memory: SharedArrayBuffer): Blocktime {
  const cells = new Int32Array(memory, 0, CELL_COUNT)
  const times = new Float64Array(memory, CELL_COUNT * 4, TIME_COUNT)

  /** Slot of a thread; the last one is shared by all threads over the bound. */
  function slotOf(threadId: number): number {
    const used = cells[CELLS.used]!
    for (let slot = 0; slot < used; slot++) if (cells[CELLS.threads + slot] === threadId) return slot
    if (used === SLOTS) return SLOTS - 1
    cells[CELLS.threads + used] = threadId
    cells[CELLS.used] = used + 1
    return used
  }

  function finish(slot: number, nowUs: number): void {
    const waitedUs = Math.max(0, nowUs - times[TIMES.starts + slot]!)
    times[TIMES.totals + slot]! += waitedUs
    times[TIMES.sum]! += waitedUs
    times[TIMES.max] = Math.max(times[TIMES.max]!, waitedUs)
    cells[CELLS.buckets + bucketOf(waitedUs)]!++
    if (cells[CELLS.blocked] === cells[CELLS.used]) {
      times[TIMES.overlapped]! += Math.max(0, nowUs - times[TIMES.lastStart]!)
    }
    cells[CELLS.blocked]!--
    cells[CELLS.states + slot] = 0
  }

  return {
    begin(threadId, page, nowUs) {
      const slot = slotOf(threadId)
      cells[CELLS.faults]!++
      if (cells[CELLS.states + slot] === 1) {
        // A thread that faults again on the same page still waits: it was woken for nothing.
        if (times[TIMES.pages + slot] === page) return
        finish(slot, nowUs)
      }
      times[TIMES.pages + slot] = page
      times[TIMES.starts + slot] = nowUs
      times[TIMES.lastStart] = nowUs
      cells[CELLS.blocked]!++
      cells[CELLS.states + slot] = 1
    },
    end(page, pages, nowUs) {
      const used = cells[CELLS.used]!
      for (let slot = 0; slot < used; slot++) {
        if (cells[CELLS.states + slot] !== 1) continue
        const waitsFor = times[TIMES.pages + slot]!
        if (waitsFor < page || waitsFor >= page + pages) continue
        finish(slot, nowUs)
      }
    },
    report() {
      const counts = Array.from(cells.subarray(CELLS.buckets, CELLS.buckets + BUCKETS))
      const byThreadMs: Record<string, number> = {}
      for (let slot = 0; slot < cells[CELLS.used]!; slot++) {
        byThreadMs[cells[CELLS.threads + slot]!] = times[TIMES.totals + slot]! / 1000
      }
      const max = times[TIMES.max]!
      return {
        faults: cells[CELLS.faults]!,
        overlappedMs: times[TIMES.overlapped]! / 1000,
        byThreadMs,
        latencyUs: { p50: quantile(counts, 0.5, max), p99: quantile(counts, 0.99, max), max },
        histogramUs: octaves(counts),
      }
    },
  }
}

/** An octave is divided evenly: no logarithm for each fault. */
function bucketOf(us: number): number {
  if (us < 1) return 0
  if (us >= 2 ** 31) return BUCKETS - 1
  const octave = 31 - Math.clz32(us)
  // Not `**`: with an exponent that is not known it is a call.
  return octave * STEPS_PER_OCTAVE + Math.floor((us / (1 << octave) - 1) * STEPS_PER_OCTAVE)
}

const middleOf = (bucket: number): number =>
  2 ** Math.floor(bucket / STEPS_PER_OCTAVE) * (1 + ((bucket % STEPS_PER_OCTAVE) + 0.5) / STEPS_PER_OCTAVE)

/** The middle of the bucket that holds the quantile: exact to about 6 %. */
function quantile(counts: readonly number[], q: number, max: number): number {
  const total = counts.reduce((a, b) => a + b, 0)
  if (total === 0) return 0
  let seen = 0
  for (const [bucket, count] of counts.entries()) {
    seen += count
    if (seen >= q * total) return Math.min(max, middleOf(bucket))
  }
  return max
}

function octaves(counts: readonly number[]): number[] {
  const result: number[] = []
  for (let i = 0; i < OCTAVES; i++) {
    result.push(counts.slice(i * STEPS_PER_OCTAVE, (i + 1) * STEPS_PER_OCTAVE).reduce((a, b) => a + b, 0))
  }
  while (result.length > 0 && result[result.length - 1] === 0) result.pop()
  return result
}
