// How long a guest in a QEMU destination waits for pages: from QEMU's own trace events, which it writes with the time to
// microseconds. Two lines a fault, and none for a page that nobody asked for, so that a push costs nothing; and the same
// whoever the source is.

import { quantile } from './benchmark.js'

/** Arguments for a QEMU that is to write them; `file` gets them. */
export const traceArgs = (file: string): string[] => [
  ...['-trace', 'postcopy_page_req_add', '-trace', 'postcopy_page_req_del'],
  ...['-msg', 'timestamp=on', '-D', file],
]

/** A page that was asked for: µs since 1970. */
export interface Fault {
  readonly askedUs: number
  readonly placedUs: number
}

const LINE = /(\d+)\.(\d{6}):postcopy_page_req_(add|del) \w+ page req (0x[0-9a-f]+) /g

/** In the order in which they were placed. What was never placed, before the log ends, is not among them. */
export function parseFaults(log: string): readonly Fault[] {
  const asked = new Map<string, number>()
  const faults: Fault[] = []
  for (const [, seconds, micros, what, page] of log.matchAll(LINE)) {
    const us = Number(seconds) * 1e6 + Number(micros)
    if (what === 'add') asked.set(page!, us)
    else faults.push({ askedUs: asked.get(page!) ?? us, placedUs: us })
  }
  return faults
}

export interface Waiting {
  readonly faults: number
  /** Of those asked for in that time, µs; NaN when there was none. */
  readonly mean: number
  readonly p50: number
  readonly p99: number
  readonly 'p99.9': number
  /** In which a page was waited for, ms: with one vCPU, how long it stood still. */
  readonly blocked: number
}

/** What was asked for in [fromUs, toUs). */
export function waiting(faults: readonly Fault[], fromUs: number, toUs: number): Waiting {
  const within = faults.filter(({ askedUs }) => askedUs >= fromUs && askedUs < toUs)
  const sorted = Float64Array.from(within, ({ askedUs, placedUs }) => placedUs - askedUs).sort()
  const at = (q: number): number => (sorted.length === 0 ? Number.NaN : quantile(sorted, q))
  return {
    faults: within.length,
    mean: sorted.reduce((sum, us) => sum + us, 0) / sorted.length,
    p50: at(0.5),
    p99: at(0.99),
    'p99.9': at(0.999),
    blocked: unionUs(within, toUs) / 1000,
  }
}

/** Length of the time that is in at least one of them. */
function unionUs(faults: readonly Fault[], toUs: number): number {
  let sum = 0
  let coveredUs = 0
  for (const { askedUs, placedUs } of [...faults].sort((a, b) => a.askedUs - b.askedUs)) {
    const endUs = Math.min(placedUs, toUs)
    sum += Math.max(0, endUs - Math.max(askedUs, coveredUs))
    coveredUs = Math.max(coveredUs, endUs)
  }
  return sum
}
