import assert from 'node:assert/strict'
import { test } from 'node:test'
import { expectedDowntimeMs, judge, type PassResult } from './convergence.js'

const MiB = 1024 * 1024
const pass = (dirtyMiB: number, sentMiB = 100, tookMs = 100): PassResult => ({
  sentBytes: sentMiB * MiB,
  tookMs,
  dirtyBytes: dirtyMiB * MiB,
})

test('what is left fits into the allowed downtime: converged', () => {
  assert.equal(judge([pass(20)], 25), 'converged')
  assert.equal(judge([pass(0)], 0), 'converged')
})

test('a guest that dirties the same again and again: diverges after the second pass', () => {
  assert.equal(judge([pass(99)], 25), 'continue')
  assert.equal(judge([pass(99), pass(99)], 25), 'diverges')
})

test('a guest whose rest shrinks is given time', () => {
  assert.equal(judge([pass(400), pass(150), pass(70)], 25), 'continue')
  assert.equal(judge([pass(400), pass(150), pass(70), pass(20)], 25), 'converged')
})

test('nothing sent is no speed', () => {
  assert.ok(Number.isFinite(expectedDowntimeMs(pass(10, 0, 0))))
})
