import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createStallBudget } from './stall-budget.js'

/** A guest that waits `idle` ms a second, and `pushed` more when the push goes all the time. */
function simulate(budget: number, idle: number, pushed: number) {
  const stall = createStallBudget(budget)
  let went = 0
  let waitedLate = 0
  const [ms, late] = [20_000, 10_000]
  for (let now = 0; now < ms; now++) {
    const goes = stall.pauseMs(now) === 0
    const waits = (idle + (goes ? pushed : 0)) / 1000
    stall.waited(waits)
    if (now >= late) {
      went += goes ? 1 : 0
      waitedLate += waits
    }
  }
  return { share: went / (ms - late), msPerSecond: (waitedLate / (ms - late)) * 1000, stall }
}

test('within the budget the push goes all the time', () => {
  const { share, stall } = simulate(50, 10, 20)
  assert.equal(share, 1)
  assert.equal(stall.missedMs(), 0)
})

test('over the budget the push pauses until the guest waits no longer than it may', () => {
  const { share, msPerSecond } = simulate(50, 10, 80)
  assert.ok(share > 0.2 && share < 0.8, `share ${share}`)
  assert.ok(msPerSecond < 60, `${msPerSecond} ms a second`)
})

test('what cannot be kept is told, and the push goes on a little', () => {
  const { share, stall } = simulate(50, 200, 80)
  assert.ok(share > 0.1 && share < 0.15, `share ${share}`)
  assert.ok(stall.missedMs() > 15_000, `${stall.missedMs()}`)
})

test('without a budget nothing pauses', () => {
  assert.equal(simulate(Number.POSITIVE_INFINITY, 900, 900).share, 1)
})
