import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../errors.js'
import {
  EMPTY_RAM_BODY,
  encodeMappedRamEntry,
  encodeMappedRamTotal,
  layOutMappedRam,
  MAPPED_RAM_ALIGNMENT_BYTES,
  MAPPED_RAM_HEADER_BYTES,
  mappedRamBitmapBytes,
  mappedRamPaddingBit,
  readMappedRamSetup,
} from './mapped-ram.js'
import { readerOf } from './reader.js'

const START = 100

/** A list in a file, and a reader that can go anywhere in it. */
function fileOf(blocks: readonly { name: string; length: number }[]) {
  const layout = layOutMappedRam(START + 8, blocks)
  const file = Buffer.alloc(layout.end + 8)
  file.set(encodeMappedRamTotal(blocks), START)
  for (const block of layout.blocks) file.set(encodeMappedRamEntry(block), block.entryOffset)
  file.set(EMPTY_RAM_BODY, layout.end)
  const ended = (offset: number, record: string) => new ProtocolError('ends', { offset, record })
  const goTo = (offset: number) => readerOf(file.subarray(offset), { offset, ended })
  return { layout, file, read: () => readMappedRamSetup(goTo(START), goTo) }
}

test('the header is 28 bytes, as QEMU packs it', () => {
  const block = { name: 'm0', length: 0x2000, entryOffset: 0, bitmapOffset: 0x1234, pagesOffset: 0x10_0000 }
  assert.equal(MAPPED_RAM_HEADER_BYTES, 28)
  assert.equal(
    Buffer.from(encodeMappedRamEntry(block)).toString('hex'),
    [
      '02',
      '6d30',
      '0000000000002000',
      '00000001',
      '0000000000001000',
      '0000000000001234',
      '0000000000100000',
    ].join(''),
  )
})

test('a list is read as it was laid out, and its parts do not overlap', () => {
  const lists = fc.array(fc.integer({ min: 0, max: 70 }), { minLength: 1, maxLength: 5 })
  fc.assert(
    fc.property(lists, (pages) => {
      const blocks = pages.map((count, index) => ({ name: `block ${index}`, length: count * 4096 }))
      // The list ends when the lengths add up; what is empty at its end is not there.
      while (blocks.at(-1)?.length === 0) blocks.pop()
      const { layout, read } = fileOf(blocks)
      assert.deepEqual(read().blocks, layout.blocks)
      let end = START
      for (const { entryOffset, bitmapOffset, pagesOffset, length } of layout.blocks) {
        assert.ok(entryOffset >= end && bitmapOffset > entryOffset)
        assert.ok(pagesOffset >= bitmapOffset + mappedRamBitmapBytes(length))
        assert.equal(pagesOffset % MAPPED_RAM_ALIGNMENT_BYTES, 0)
        end = pagesOffset + length
      }
    }),
    { numRuns: 50 },
  )
})

const TWO = [
  { name: 'one', length: 5 * 4096 },
  { name: 'two', length: 3 * 4096 },
]

/** Field of the second block's entry: offset from the entry, a value that is wrong, the words of the refusal. */
const WRONG: readonly (readonly [string, number, bigint | number, RegExp])[] = [
  ['name that is there already', 1, 0x6f6e65, /block is there twice/],
  ['empty name', 0, 0, /bad string length/],
  ['length of half a page', 4, 2048n, /whole pages/],
  ['length over the total', 4, 1n << 20n, /longer than the total/],
  ['length that is too short', 4, 4096n, /ends|flags|length|MEM_SIZE/],
  ['header version', 12, 2, /version of the header/],
  ['page size', 16, 8192n, /page size/],
  ['bitmap offset', 24, 0n, /bitmap offset/],
  ['pages offset before the bitmap', 32, 4096n, /overlap/],
  ['pages offset between pages', 32, 0x40_0010n, /unaligned/],
]

for (const [what, at, value, message] of WRONG) {
  test(`refused with its place: ${what}`, () => {
    const { layout, file, read } = fileOf(TWO)
    const { entryOffset } = layout.blocks[1]!
    if (typeof value === 'bigint') file.writeBigUInt64BE(value, entryOffset + at)
    else if (what.includes('name that')) file.writeUIntBE(value, entryOffset + at, 3)
    else if (at === 0) file[entryOffset] = value
    else file.writeUInt32BE(value, entryOffset + at)
    assert.throws(read, (error) => {
      assert(error instanceof ProtocolError)
      assert.match(error.message, message)
      assert.ok(error.offset >= entryOffset, `${error.offset} is before the entry at ${entryOffset}`)
      return true
    })
  })
}

test('pages in the list are refused', () => {
  const { file, layout, read } = fileOf(TWO)
  file.writeBigUInt64BE(0x08n, layout.end)
  assert.throws(read, ProtocolError)
})

test('bits behind the last page are found', () => {
  const length = 70 * 4096
  const bytes = new Uint8Array(mappedRamBitmapBytes(length))
  assert.equal(bytes.length, 16)
  bytes.fill(0xff, 0, 8)
  bytes[8] = 0x3f
  assert.equal(mappedRamPaddingBit(bytes, length), -1)
  bytes[8] = 0x7f
  assert.equal(mappedRamPaddingBit(bytes, length), 70)
  bytes.set([0x3f, 0, 0, 0, 0, 0, 0, 0x80], 8)
  assert.equal(mappedRamPaddingBit(bytes, length), 127)
})
