// Compares orders of pages on a recorded trace: what each would cost, without running any guest. Any thread; blocks it for as
// long as it calculates.

import { UsageError } from '../errors.js'
import { ramBlocksOf, readTrace, shapeOf, type WorkingSetFile } from '../image/working-set-file.js'
import { assertAtLeastZero } from '../limits.js'
import { AHEAD_MS, AROUND_PAGES, ORDER_NAMES, type OrderName, orderSpec } from '../order/orders.js'
import { quietMsWhere, requestsTireWhere, YIELDING } from '../source/yielding.js'
import { type Outcome, simulate, type Trace } from './model.js'

export interface ReplayOptions {
  /** Bytes a second that source, link and destination carry together. By default what the last run measured, or else 300 MiB. */
  readonly bandwidth?: number
  /** What the link adds to the time of a fault, ms. Default 0: the link is that of the trace. */
  readonly roundTripMs?: number
  /** As in `ServeOptions`: by default 6; 10, or 50 where recorded pages go first; and 100. */
  readonly aheadMs?: number
  readonly quietMs?: number
  readonly patienceMs?: number
  /** As in `ServeOptions`. Default 64. */
  readonly aroundPages?: number
  /** A working set to send first in the recorded orders; by default that of the trace itself, which is the best case. */
  readonly workingSet?: string
  /** Only these orders, and `on-demand`. Default all. */
  readonly orders?: readonly OrderName[]
}

export interface ReplayReport {
  readonly file: string
  readonly pages: number
  /** From the guest's start to the last page that it asked for, ms. */
  readonly spanMs: number
  /** What a fault cost when the trace was taken, as far as the trace tells: see `faultCostUs`, µs. */
  readonly recordedFaultUs: number
  readonly bandwidth: number
  readonly roundTripMs: number
  readonly orders: readonly (Outcome & { readonly order: OrderName | 'on-demand' })[]
  /** Why it is to be taken with care; empty when it is not. */
  readonly doubts: readonly string[]
}

const DEFAULT_BANDWIDTH = 300 * 1024 * 1024

/** @throws ImageError when a trace is damaged; UsageError for one that is not there, or for options that cannot be. */
export function replayTrace(path: string, options: ReplayOptions = {}): ReplayReport {
  const { roundTripMs = 0, patienceMs = YIELDING.patienceMs } = options
  const { aroundPages = AROUND_PAGES, aheadMs = AHEAD_MS } = options
  const file = readTrace(path)
  const bandwidth = options.bandwidth ?? measuredBandwidth(file)
  assertAtLeastZero({ bandwidth, roundTripMs, quietMs: options.quietMs ?? 0, patienceMs, aheadMs })
  const trace = traceOf(file)
  const recorded = options.workingSet === undefined ? file.pages : otherSet(options.workingSet, file)
  const gaps = gapsOf(file.firstUs)
  const recordedFaultUs = faultCostUs(gaps)
  const conditions = {
    ...{ recorded, patienceMs, aheadMs, loadedMs: file.recorded.loadedMs },
    bandwidth: bandwidth === 0 ? Number.POSITIVE_INFINITY : bandwidth,
    ...{ wakeUs: wakeDelayUs(gaps), recordedFaultUs, faultUs: recordedFaultUs + roundTripMs * 1000 },
  }
  const specs = (options.orders ?? ORDER_NAMES).map((order) => ({
    order,
    spec: orderSpec(order, aroundPages),
  }))
  return {
    file: path,
    pages: file.pages.length,
    spanMs: (file.firstUs.at(-1) ?? 0) / 1000,
    ...{ recordedFaultUs, bandwidth, roundTripMs },
    orders: [{ order: 'on-demand' as const, spec: undefined }, ...specs].map(({ order, spec }) => {
      const { quietMs = quietMsWhere(spec?.recorded === true) } = options
      const requestsTire = spec !== undefined && requestsTireWhere(spec, false)
      return { order, ...simulate(trace, { ...conditions, spec, quietMs, requestsTire }) }
    }),
    doubts: doubtsAbout(file),
  }
}

const traceOf = (file: WorkingSetFile): Trace => ({
  ...file,
  blocks: ramBlocksOf(file.blocks),
  present: file.blocks.map(({ present }) => present),
})

/** @throws UsageError when its pages are not those of the trace's machine */
function otherSet(path: string, trace: WorkingSetFile): Uint32Array {
  const set = readTrace(path)
  if (shapeOf(set) !== shapeOf(trace))
    throw new UsageError(`${path} is of a machine with other RAM than the trace`)
  return set.pages
}

const measuredBandwidth = ({ last, recorded }: WorkingSetFile): number =>
  last.bytesPerSecond || recorded.bytesPerSecond || DEFAULT_BANDWIDTH

/** Times between two requests, µs, ascending. */
export const gapsOf = (atUs: Uint32Array): Uint32Array =>
  atUs
    .slice(1)
    .map((us, i) => us - atUs[i]!)
    .sort()

const quantile = (sorted: Uint32Array, share: number): number =>
  sorted[Math.floor(sorted.length * share)] ?? 0

/**
 * What a fault cost, out of the times between two: what the fastest of them took. All others were as long because the guest
 * calculated in between, or something else had the CPU. Of both, the number of faults and the time that QEMU says it waited for
 * them, that is nearest to what was measured.
 */
export const faultCostUs = (gaps: Uint32Array): number => quantile(gaps, FASTEST)

/** Not the fastest of all: two CPUs can ask at the same time. */
const FASTEST = 0.1

/**
 * How late a process wakes on the machine of the trace: what one fault in ten took. On one that has other work to do, much of
 * that is the wait for a CPU, which the source has, too. Otherwise it is next to nothing.
 */
const wakeDelayUs = (gaps: Uint32Array): number => Math.min(quantile(gaps, 0.9), WAKE_US_MAX)

const WAKE_US_MAX = 5000

function doubtsAbout({ records, recorded }: WorkingSetFile): string[] {
  const doubts: string[] = []
  if (records > 1) doubts.push(`its times are those of ${records} records, merged`)
  if (recorded.order !== 'on-demand')
    doubts.push(
      `pages were pushed while it was recorded (${recorded.order}), and nobody saw those being used`,
    )
  return doubts
}
