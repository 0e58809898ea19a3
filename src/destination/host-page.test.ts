import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../errors.js'
import { viewOf } from '../os/mapping.js'
import { nativeBuffer } from '../os/memory.js'
import { numberBlocks } from '../ram/block.js'
import { createHostPageAssembler } from './host-page.js'

const KiB = 1024
const RATIO = 4
const [huge, other, small] = numberBlocks([
  { name: 'huge', length: 64 * KiB, pageSize: RATIO * 4 * KiB, address: 0 },
  { name: 'other', length: 64 * KiB, pageSize: RATIO * 4 * KiB, address: 1 << 20 },
  { name: 'small', length: 64 * KiB, pageSize: 4 * KiB, address: 2 << 20 },
])
const source = nativeBuffer(RATIO * 4096)
for (let i = 0; i < RATIO; i++) source.bytes.fill(i + 1, i * 4096, (i + 1) * 4096)

test('a host page is complete with its last piece, in whatever order they come', () => {
  const assembler = createHostPageAssembler([huge!, small!])
  const order = fc.shuffledSubarray([0, 1, 2, 3], { minLength: RATIO, maxLength: RATIO })
  const property = fc.property(
    order,
    fc.array(fc.boolean(), { minLength: RATIO, maxLength: RATIO }),
    (pieces, zero) => {
      for (const [i, piece] of pieces.entries()) {
        const from = zero[piece] ? undefined : source.address + piece * 4096
        const address = assembler.add(huge!, 8 + piece, from, 0)
        if (i < RATIO - 1) {
          assert.equal(address, undefined)
          continue
        }
        const page = viewOf(address!, RATIO * 4096)
        for (let p = 0; p < RATIO; p++) {
          const expected = Buffer.alloc(4096, zero[p] ? 0 : p + 1)
          assert(expected.equals(page.subarray(p * 4096, (p + 1) * 4096)), `piece ${p} of ${pieces}`)
        }
      }
      assembler.assertEmpty(0)
    },
  )
  fc.assert(property, { numRuns: 50 })
  assembler.close()
})

for (const [what, add] of [
  ['of another host page', [huge!, 4]],
  ['of another block', [other!, 1]],
  ['that came already', [huge!, 0]],
] as const) {
  test(`a piece ${what} is refused`, () => {
    const assembler = createHostPageAssembler([huge!, other!])
    assembler.add(huge!, 0, undefined, 0)
    assert.throws(
      () => assembler.add(add[0], add[1], undefined, 77),
      (error) => {
        assert(error instanceof ProtocolError)
        assert.equal(error.offset, 77)
        return true
      },
    )
    assembler.close()
  })
}

test('an unfinished host page is noticed at the end', () => {
  const assembler = createHostPageAssembler([huge!])
  assembler.assertEmpty(0)
  assembler.add(huge!, 5, undefined, 0)
  assert.throws(() => assembler.assertEmpty(9), ProtocolError)
  assembler.close()
})
