import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BLOCKTIME_BYTES, createBlocktime } from './blocktime.js'

const make = () => createBlocktime(new SharedArrayBuffer(BLOCKTIME_BYTES))

test('each wait counts for its thread, and the histogram has it in its power of two', () => {
  const blocktime = make()
  blocktime.begin(7, 100, 1000)
  blocktime.end(100, 1, 1050)
  blocktime.begin(7, 101, 2000)
  blocktime.end(90, 64, 2003)
  const report = blocktime.report()
  assert.equal(report.faults, 2)
  assert.deepEqual(report.byThreadMs, { 7: 0.053 })
  assert.deepEqual(report.histogramUs, [0, 1, 0, 0, 0, 1])
  assert.equal(report.latencyUs.max, 50)
})

test('overlapped time is only that in which every thread was blocked', () => {
  const blocktime = make()
  // Both threads are known from here on.
  blocktime.begin(1, 10, 0)
  blocktime.begin(2, 20, 0)
  blocktime.end(10, 1, 100)
  blocktime.end(20, 1, 200)
  assert.equal(blocktime.report().overlappedMs, 0.1)
  blocktime.begin(1, 11, 1000)
  blocktime.begin(2, 21, 1300)
  blocktime.end(21, 1, 1400)
  blocktime.end(11, 1, 1500)
  assert.equal(blocktime.report().overlappedMs, 0.2)
  assert.deepEqual(blocktime.report().byThreadMs, { 1: 0.6, 2: 0.3 })
})

test('a thread that faults again on the same page is still in its first wait', () => {
  const blocktime = make()
  blocktime.begin(1, 10, 0)
  blocktime.begin(1, 10, 40)
  blocktime.end(10, 1, 100)
  blocktime.end(10, 1, 200)
  assert.deepEqual(blocktime.report().byThreadMs, { 1: 0.1 })
})

test('the placement of a page nobody waits for changes nothing', () => {
  const blocktime = make()
  blocktime.begin(1, 10, 0)
  blocktime.end(11, 5, 100)
  assert.deepEqual(blocktime.report().histogramUs, [])
})

test('p50 and p99 are within a tenth of the truth', () => {
  const blocktime = make()
  for (let i = 1; i <= 1000; i++) {
    blocktime.begin(1, i, 0)
    blocktime.end(i, 1, i)
  }
  const { p50, p99, max } = blocktime.report().latencyUs
  assert.ok(Math.abs(p50 - 500) < 50, `${p50}`)
  assert.ok(Math.abs(p99 - 990) < 99, `${p99}`)
  assert.equal(max, 1000)
})

test('more threads than slots are counted together, not lost', () => {
  const blocktime = make()
  for (let i = 0; i < 300; i++) {
    blocktime.begin(i, i, 0)
    blocktime.end(i, 1, 10)
  }
  const { histogramUs } = blocktime.report()
  assert.equal(
    histogramUs.reduce((a, b) => a + b),
    300,
  )
})
