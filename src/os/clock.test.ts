import assert from 'node:assert/strict'
import test from 'node:test'
import { monotonicUs, realtimeUs } from './clock.js'

test('the monotonic clock is that of process.hrtime', () => {
  const before = Number(process.hrtime.bigint()) / 1000
  const now = monotonicUs()
  const after = Number(process.hrtime.bigint()) / 1000
  assert(before <= now && now <= after, `${before} ${now} ${after}`)
})

test('the realtime clock is that of Date', () => {
  const before = Date.now()
  const now = realtimeUs() / 1000
  assert(now >= before - 1 && now <= Date.now() + 1)
})
