import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ORDER_NAMES, orderSpec } from '../order/orders.js'
import {
  createYielding,
  NEVER_YIELDING,
  requestsTireWhere,
  YIELDING,
  type YieldingOptions,
} from './yielding.js'

/** Of each of `seconds`, how much the push may use, ms, when `asks` says at which millisecond a page is asked for. */
function free(
  asks: (ms: number) => boolean,
  seconds: number,
  options: Partial<YieldingOptions> = {},
): number[] {
  const yielding = createYielding({ ...YIELDING, ...options })
  return Array.from({ length: seconds }, (_, second) => {
    let count = 0
    for (let ms = second * 1000; ms < (second + 1) * 1000; ms++) {
      if (asks(ms)) yielding.noteRequest(ms)
      if (yielding.waitMs(ms) === 0) count++
    }
    return count
  })
}

test('the push waits until nobody has asked for a page for a while', () => {
  const yielding = createYielding(YIELDING)
  assert.equal(yielding.waitMs(0), 0, 'nobody has asked yet')
  yielding.noteRequest(1)
  assert.equal(yielding.waitMs(1), 10)
  assert.equal(yielding.waitMs(4.5), 7, 'whole milliseconds, never too few')
  yielding.noteRequest(8)
  assert.equal(yielding.waitMs(10.5), 8)
  assert.equal(yielding.waitMs(18), 0)
})

test('a guest that never ceases to ask holds it up for as long as its patience lasts', () => {
  assert.deepEqual(
    free(() => true, 3, { requestsTire: false }),
    [900, 1000, 1000],
  )
})

test('one that asks fast is put up with for as many requests', () => {
  const yielding = createYielding(YIELDING)
  const waited = (fromMs: number): number => {
    for (let ms = 0; ; ms++) {
      for (let i = 0; i < 4; i++) yielding.noteRequest(fromMs + ms)
      if (yielding.waitMs(fromMs + ms) === 0) return ms
    }
  }
  assert.equal(waited(0), 24)
  assert.equal(waited(50), 0, 'a moment of quiet is not enough')
  for (let ms = 51; ms < 50 + 10 + 99; ms++) yielding.waitMs(ms)
  assert.equal(waited(159), 0, 'nor is half of it')
  for (let ms = 160; ms < 159 + 10 + 101; ms++) yielding.waitMs(ms)
  assert.equal(waited(270), 24, 'quiet restores it')
})

test('not where each page is to be asked for', () => {
  const yielding = createYielding({ ...YIELDING, requestsTire: false })
  for (let i = 0; i < 1000; i++) yielding.noteRequest(1)
  assert.equal(yielding.waitMs(1), 10)
})

test('many requests say something of a guest only where each brings its neighbours, and none is to be noted', () => {
  const tire = (keeps: boolean) => ORDER_NAMES.filter((name) => requestsTireWhere(orderSpec(name), keeps))
  assert.deepEqual(tire(false), ['fault-around', 'recorded-around'])
  assert.deepEqual(tire(true), [])
  assert.equal(requestsTireWhere(orderSpec('fault-around', 1), false), false)
})

test('quiet restores patience', () => {
  const bursts = free((ms) => ms % 200 < 50, 10)
  assert.ok(
    bursts.every((ms) => ms > 600 && ms < 720),
    `it waits in each burst: ${bursts}`,
  )
})

test('a moment of quiet is not enough once patience is used up', () => {
  const [first, ...later] = free((ms) => ms % 500 < 480, 5)
  assert.ok(first! > 800 && later.every((ms) => ms === 1000), `${[first, ...later]}`)
})

test('without a quiet time it never waits', () => {
  assert.deepEqual(
    free(() => true, 1, { quietMs: 0 }),
    [1000],
  )
})

test('a guest is asking for a moment after each request', () => {
  const yielding = createYielding(NEVER_YIELDING)
  assert.equal(yielding.asking(5), false)
  yielding.noteRequest(10)
  assert.deepEqual([yielding.asking(11), yielding.asking(100)], [true, false])
})
