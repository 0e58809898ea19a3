import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createYielding } from './yielding.js'

/** How many of `ms` milliseconds the push may use, when `asks` says at which of them a page is asked for. */
function free(asks: (ms: number) => boolean, ms: number, options = { quietMs: 10, patienceMs: 100 }): number {
  const yielding = createYielding(options)
  let count = 0
  for (let now = 1; now <= ms; now++) {
    if (asks(now)) yielding.asked(now)
    if (yielding.waitMs(now) === 0) count++
  }
  return count
}

test('the push waits until nobody has asked for a page for a while', () => {
  const yielding = createYielding({ quietMs: 10, patienceMs: 100 })
  assert.equal(yielding.waitMs(0), 0, 'nobody has asked yet')
  yielding.asked(1)
  assert.equal(yielding.waitMs(1), 10)
  assert.equal(yielding.waitMs(4.5), 7, 'whole milliseconds, never too few')
  yielding.asked(8)
  assert.equal(yielding.waitMs(10.5), 8)
  assert.equal(yielding.waitMs(18), 0)
})

test('it waits no longer than its patience lasts, and has half of the time at least', () => {
  assert.equal(
    free(() => true, 100),
    0,
  )
  const share = free(() => true, 10_000) / 10_000
  assert.ok(share > 0.49 && share < 0.55, `${share}`)
})

test('patience that was used comes back while the push goes', () => {
  // Bursts of 50 ms in which the guest asks, each 200 ms: the push waits in each of them.
  assert.equal(free((ms) => ms % 200 < 50, 10_000) / 10_000 < 0.75, true)
  const yielding = createYielding({ quietMs: 10, patienceMs: 100 })
  yielding.asked(1)
  yielding.waitMs(1)
  for (const ms of [50, 101]) yielding.asked(ms)
  assert.equal(yielding.waitMs(101), 0, 'used up')
  assert.equal(yielding.waitMs(151), 0)
  yielding.asked(151)
  assert.equal(yielding.waitMs(151), 10, 'half of it is back')
})

test('without a quiet time it never waits', () => {
  assert.equal(
    free(() => true, 50, { quietMs: 0, patienceMs: 100 }),
    50,
  )
})
