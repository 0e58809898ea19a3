import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createStats, statsBytes } from './stats.js'

test('two views of the same memory see the same counters, each its own', () => {
  const names = ['pages', 'bytes'] as const
  const memory = new SharedArrayBuffer(statsBytes(names))
  const writer = createStats(names, memory)
  const reader = createStats(names, memory)
  writer.pages++
  writer.bytes = 2 ** 50 + 1
  assert.deepEqual({ ...reader }, { pages: 1, bytes: 2 ** 50 + 1 })
})
