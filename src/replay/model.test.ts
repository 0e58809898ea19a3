import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { AHEAD_MS, ORDER_NAMES, orderSpec } from '../order/orders.js'
import { createBitmap } from '../ram/bitmap.js'
import { numberBlocks } from '../ram/block.js'
import { type Conditions, simulate, type Trace } from './model.js'
import { faultCostUs, gapsOf } from './replay.js'

const PAGES = 2048

function traceOf(touches: readonly (readonly [page: number, atUs: number])[]): Trace {
  const blocks = numberBlocks([
    { name: 'a', length: 1024 * 4096, pageSize: 4096, address: 0 },
    { name: 'b', length: 1024 * 4096, pageSize: 4096, address: 0 },
  ])
  const present = blocks.map(({ pages }) => createBitmap(pages))
  for (const bitmap of present) bitmap.setRange(0, 1000)
  return {
    ...{ blocks, present, records: 1 },
    pages: Uint32Array.from(touches, ([page]) => page),
    firstUs: Uint32Array.from(touches, ([, atUs]) => atUs),
    seen: Uint16Array.from(touches, () => 1),
  }
}

const conditions = (changes: Partial<Conditions> = {}): Conditions => ({
  ...{
    spec: undefined,
    recorded: new Uint32Array(0),
    quietMs: 10,
    patienceMs: 1e9,
    requestsTire: false,
    loadedMs: 0,
    aheadMs: AHEAD_MS,
  },
  ...{ wakeUs: 0, bandwidth: Number.POSITIVE_INFINITY },
  ...{ recordedFaultUs: 100, faultUs: 100 },
  ...changes,
})

test('on demand, under the conditions of the trace, it takes as long as the trace', () => {
  const trace = traceOf([
    [5, 1000],
    [6, 1100],
    [1500, 1500],
  ])
  const { faults, stallMs, finishedMs, residentMs } = simulate(trace, conditions())
  assert.equal(faults, 3)
  assert.ok(Math.abs(stallMs - 0.3) < 1e-9)
  assert.ok(Math.abs(finishedMs - 1.6) < 1e-9)
  assert.equal(residentMs, undefined)
})

test('a longer way costs each fault as much; the time between faults is the guest’s own', () => {
  const trace = traceOf([
    [5, 1000],
    [6, 1300],
  ])
  const { stallMs, finishedMs } = simulate(trace, conditions({ faultUs: 2100 }))
  assert.ok(Math.abs(stallMs - 4.2) < 1e-9)
  assert.ok(Math.abs(finishedMs - (1 + 2.1 + 0.2 + 2.1)) < 1e-9)
})

test('a page waits behind what is on the link', () => {
  const trace = traceOf([[5, 1]])
  // Of the record 16 pages go before, and 64 at 0; each takes 4.104 ms at a byte a microsecond.
  const recorded = Uint32Array.from({ length: 80 }, (_, i) => 200 + i)
  const spec = orderSpec('recorded')
  const { faults, stallMs } = simulate(trace, conditions({ spec, recorded, bandwidth: 1e6 }))
  assert.equal(faults, 1)
  assert.ok(stallMs > 64 * 4.1 && stallMs < 66 * 4.2, `${stallMs}`)
})

test('pages that were recorded and arrive in time are no faults, and those that arrive late are', () => {
  const touches = Array.from({ length: 200 }, (_, i) => [i * 3, 20_000 + i * 200] as const)
  const trace = traceOf(touches)
  const recorded = trace.pages
  const fast = simulate(trace, conditions({ spec: orderSpec('recorded'), recorded, bandwidth: 100e6 }))
  assert.equal(fast.faults, 0)
  const slow = simulate(trace, conditions({ spec: orderSpec('recorded'), recorded, bandwidth: 1e6 }))
  assert.ok(slow.faults > 20, `${slow.faults}`)
})

test('what is likely waits until the device state is loaded, and not for ever', () => {
  const trace = traceOf([[5, 1000]])
  const recorded = Uint32Array.from({ length: 160 }, (_, i) => (i < 159 ? 200 + i : 5)) // 146 pages go before the guest runs
  const spec = orderSpec('recorded')
  for (const [loadedMs, faults] of [
    [0, 0],
    [20, 1],
    [Number.POSITIVE_INFINITY, 1],
  ] as const) {
    const outcome = simulate(trace, conditions({ spec, recorded, loadedMs, bandwidth: 100e6 }))
    assert.equal(outcome.faults, faults)
    assert.ok(outcome.residentMs! < 1000)
  }
})

test('what is likely is there before the guest, as far as little time goes', () => {
  const trace = traceOf([[5, 0]])
  const among = (others: number, aheadMs = AHEAD_MS): number => {
    const recorded = Uint32Array.from({ length: others + 1 }, (_, i) => (i < others ? 200 + i : 5))
    const spec = orderSpec('recorded')
    return simulate(trace, conditions({ spec, recorded, aheadMs, loadedMs: 1, bandwidth: 100e6 })).faults
  }
  assert.deepEqual([among(100), among(200)], [0, 1])
  assert.deepEqual([among(0, 0), among(200, 10)], [1, 0], 'it is said for how long')
})

test('the scan begins when nothing was asked for, and the source has woken up', () => {
  const trace = traceOf([
    [5, 1000],
    [6, 12_500],
  ])
  const spec = orderSpec('linear')
  const faults = (wakeUs: number) => simulate(trace, conditions({ spec, wakeUs, bandwidth: 1e9 })).faults
  assert.equal(faults(0), 1)
  assert.equal(faults(3000), 2)
})

test('around a page comes its group, and the more, the longer a guest goes through RAM: a fault where each one ends', () => {
  const trace = traceOf(Array.from({ length: 640 }, (_, i) => [i, 1000 + i * 1100] as const))
  const spec = orderSpec('fault-around')
  const { faults } = simulate(trace, conditions({ spec, bandwidth: 1e9, quietMs: 1e6 }))
  assert.equal(faults, 4)
})

const touches = fc
  .uniqueArray(fc.nat(PAGES - 1), { minLength: 1, maxLength: 200 })
  .chain((pages) =>
    fc
      .array(fc.nat(30_000), { minLength: pages.length, maxLength: pages.length })
      .map((gaps) =>
        pages.map((page, i) => [page, gaps.slice(0, i + 1).reduce((a, b) => a + b, 0)] as const),
      ),
  )

test('in every order all of RAM comes once, and nobody waits for ever', () => {
  fc.assert(
    fc.property(touches, fc.integer({ min: 1, max: 1000 }), fc.nat(30), (list, mib, quietMs) => {
      const trace = traceOf(list)
      const zeroAsked = list.filter(([page]) => page % 1024 >= 1000).length
      for (const name of ORDER_NAMES) {
        const of = conditions({
          ...{ spec: orderSpec(name), recorded: trace.pages, quietMs, bandwidth: mib * 2 ** 20 },
        })
        const { faults, stallMs, finishedMs, residentMs, bytes } = simulate(trace, of)
        assert.ok(faults <= list.length && stallMs >= 0 && finishedMs < 1e6 && residentMs! < 1e6)
        const zero = of.spec!.aroundPages > 1 ? 2 * 24 : zeroAsked // the neighbours come as well
        const most = 2000 * 4104 + zero * 9
        assert.ok(bytes >= 2000 * 4104 && bytes <= most, `${bytes} bytes of ${most}`)
      }
    }),
    { numRuns: 60 },
  )
})

test('the cost of a fault is that of the fastest, but not of two at once', () => {
  const timesOf = (gaps: readonly number[]) => {
    const times = [0]
    for (const gap of gaps) times.push(times.at(-1)! + gap)
    return Uint32Array.from(times)
  }
  assert.equal(faultCostUs(gapsOf(Uint32Array.of())), 0)
  const gaps = Array.from({ length: 100 }, (_, i) => (i < 8 ? 1 : i < 30 ? 70 : 5000))
  assert.equal(faultCostUs(gapsOf(timesOf(gaps))), 70)
})
