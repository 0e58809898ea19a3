import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { createBitmap } from '../ram/bitmap.js'
import { numberBlocks } from '../ram/block.js'
import { canonicalise, discardCommands } from './discard.js'

const KiB = 1024

test('commands cover exactly the canonical dirty pages, 12 ranges each at most', () => {
  fc.assert(
    fc.property(fc.constantFrom(4, 16), fc.array(fc.nat(255), { maxLength: 120 }), (pageKiB, bits) => {
      const [block] = numberBlocks([{ name: 'm', length: 1024 * KiB, pageSize: pageKiB * KiB, address: 0 }])
      const dirty = createBitmap(block!.pages)
      for (const bit of bits) dirty.set(bit)
      canonicalise(block!, dirty)
      const ratio = block!.ratio
      const wanted = new Set(bits.map((bit) => bit - (bit % ratio)))
      assert.equal(dirty.count(), wanted.size * ratio)
      const covered = createBitmap(block!.pages)
      for (const command of discardCommands(block!, dirty)) {
        assert.ok(command.ranges.length >= 1 && command.ranges.length <= 12)
        for (const { start, length } of command.ranges) {
          assert.equal(start % block!.pageSize, 0)
          assert.equal(length % block!.pageSize, 0)
          assert.ok(start + length <= block!.length)
          assert.ok(!covered.any(start / 4096, (start + length) / 4096), 'covered twice')
          covered.setRange(start / 4096, (start + length) / 4096)
        }
      }
      assert.deepEqual(covered.words, dirty.words)
    }),
  )
})

test('nothing dirty, no command', () => {
  const [block] = numberBlocks([{ name: 'm', length: 64 * KiB, pageSize: 4096, address: 0 }])
  assert.deepEqual(discardCommands(block!, createBitmap(block!.pages)), [])
})
