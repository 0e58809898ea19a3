import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { createBitmap, eachRun } from './bitmap.js'

const edits = fc.array(fc.record({ start: fc.nat(300), length: fc.nat(120), on: fc.boolean() }), {
  maxLength: 12,
})

test('a bitmap answers as a Set of its bits does', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 300 }), edits, (length, list) => {
      const bitmap = createBitmap(length)
      const model = new Set<number>()
      for (const { start, length: span, on } of list) {
        const from = Math.min(start, length)
        const to = Math.min(start + span, length)
        if (on) bitmap.setRange(from, to)
        else bitmap.clearRange(from, to)
        for (let bit = from; bit < to; bit++) on ? model.add(bit) : model.delete(bit)
      }
      assert.equal(bitmap.count(), model.size)
      for (let bit = 0; bit < length; bit++) {
        assert.equal(bitmap.get(bit), model.has(bit))
        const set = [...model].filter((b) => b >= bit)
        assert.equal(bitmap.nextSet(bit), set.length === 0 ? -1 : Math.min(...set))
        const before = [...model].filter((b) => b < bit)
        assert.equal(bitmap.previousSet(bit), before.length === 0 ? -1 : Math.max(...before))
        let clear = bit
        while (clear < length && model.has(clear)) clear++
        assert.equal(bitmap.nextClear(bit), clear)
        assert.equal(
          bitmap.any(bit, Math.min(length, bit + 40)),
          set.some((b) => b < bit + 40),
        )
      }
      const runs: number[] = []
      eachRun(bitmap, (start, end) => {
        assert.ok(start < end && end <= length)
        for (let bit = start; bit < end; bit++) runs.push(bit)
        assert.ok(end === length || !model.has(end))
      })
      assert.deepEqual(
        runs,
        [...model].sort((a, b) => a - b),
      )
    }),
    { numRuns: 300 },
  )
})

test('single bits over the 2^31 boundary of a 32-bit index stay apart', () => {
  const bitmap = createBitmap(70)
  bitmap.set(31)
  bitmap.set(63)
  bitmap.clear(31)
  assert.equal(bitmap.nextSet(0), 63)
  assert.equal(bitmap.get(63), true)
})
