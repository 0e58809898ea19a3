import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../errors.js'
import { applyXbzrle } from './xbzrle.js'

const PAGE_BYTES = 4096

/** A plain encoder, for the test only. */
function deltaOf(before: Uint8Array, after: Uint8Array): number[] {
  const delta: number[] = []
  const length = (value: number) => (value < 0x80 ? [value] : [0x80 | (value & 0x7f), value >> 7])
  let at = 0
  while (at < PAGE_BYTES) {
    const kept = at
    while (at < PAGE_BYTES && before[at] === after[at]) at++
    if (at === PAGE_BYTES) break
    const start = at
    while (at < PAGE_BYTES && before[at] !== after[at]) at++
    delta.push(...length(start - kept), ...length(at - start), ...after.subarray(start, at))
  }
  return delta
}

test('a delta turns the old page into the new one', () => {
  const change = fc.record({
    at: fc.nat(PAGE_BYTES - 1),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 300 }),
  })
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: PAGE_BYTES, maxLength: PAGE_BYTES }),
      fc.array(change),
      (before, changes) => {
        const after = Uint8Array.from(before)
        for (const { at, bytes } of changes) after.set(bytes.subarray(0, PAGE_BYTES - at), at)
        const page = Uint8Array.from(before)
        applyXbzrle(page, Uint8Array.from(deltaOf(before, after)))
        assert.deepEqual(page, after)
      },
    ),
  )
})

test('lengths of one and of two bytes; what is not reached stays', () => {
  const page = new Uint8Array(PAGE_BYTES).fill(9)
  applyXbzrle(page, Uint8Array.of(0x80, 0x01, 2, 5, 6, 1, 1, 7))
  assert.deepEqual([...page.subarray(127, 133)], [9, 5, 6, 9, 7, 9])
  applyXbzrle(page, new Uint8Array(0))
  assert.equal(page[130], 9)
})

test('damaged deltas are refused, at the offset of what is wrong', () => {
  const cases: readonly [string, number[], number][] = [
    ['ends inside a length', [0], 0],
    ['no replacement', [0, 0, 9], 2],
    ['ends inside a replacement', [0, 3, 1, 2], 2],
    ['two replacements in a row', [0, 1, 1, 0, 1, 1], 4],
    ['length of three bytes', [0x80, 0x80, 1, 1], 2],
    ['kept beyond the page', [0x81, 0x20, 1, 1], 2],
    ['replaced beyond the page', [0x80, 0x20, 1, 1], 3],
  ]
  for (const [what, delta, at] of cases) {
    const apply = () => applyXbzrle(new Uint8Array(PAGE_BYTES), Uint8Array.from(delta), 100)
    assert.throws(apply, { code: 'PROTOCOL', offset: 100 + at }, what)
  }
})

test('any bytes are a delta or are refused', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (delta) => {
      try {
        applyXbzrle(new Uint8Array(PAGE_BYTES), delta)
      } catch (error) {
        assert(error instanceof ProtocolError)
      }
    }),
    { numRuns: 2000 },
  )
})
