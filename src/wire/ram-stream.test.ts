import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { concat, viewOf } from './bytes.js'
import { encodeRamItem, ramItem } from './ram-item.js'
import {
  blockNameBytes,
  createRamRecord,
  RAM_FLAGS,
  RAM_RECORD_BYTES_MAX,
  type RamRecord,
  readRamRecord,
  TARGET_PAGE_BYTES,
  writeBlockName,
  writeRamWord,
} from './ram-stream.js'
import { readerOf } from './reader.js'

const fromHex = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'))
const page = (byte: number) => new Uint8Array(TARGET_PAGE_BYTES).fill(byte)

function readOne(bytes: Uint8Array): RamRecord {
  const record = createRamRecord()
  readRamRecord(readerOf(bytes), record)
  return record
}

test('a word is the offset with the flags in its low bits', () => {
  const bytes = new Uint8Array(8)
  const written = (offset: number, flags: number) => {
    writeRamWord(viewOf(bytes), 0, offset, flags)
    return Buffer.from(bytes).toString('hex')
  }
  assert.equal(written(0, RAM_FLAGS.EOS), '0000000000000010')
  assert.equal(written(0x1000, RAM_FLAGS.ZERO | RAM_FLAGS.CONTINUE), '0000000000001022')
  assert.equal(written(0xffff_f000, RAM_FLAGS.PAGE), '00000000fffff008')
  assert.equal(written(0x1_8000_0000, RAM_FLAGS.PAGE), '0000000180000008')
  assert.equal(written(2 ** 53 - 4096, RAM_FLAGS.PAGE), '001ffffffffff008')
})

test('words and names are read as they were written', () => {
  fc.assert(
    fc.property(
      fc.nat(2 ** 31 - 1),
      fc.nat(1023),
      fc.uint8Array({ minLength: 1, maxLength: 255 }),
      (high, low, raw) => {
        const offset = (high * 1024 + low) * TARGET_PAGE_BYTES
        const bytes = new Uint8Array(8 + 256 + 1)
        writeRamWord(viewOf(bytes), 0, offset, RAM_FLAGS.ZERO)
        const name = Buffer.from(raw).toString('latin1')
        const end = writeBlockName(bytes, 8, blockNameBytes(name))
        assert.equal(end, 9 + raw.length)
        bytes[end] = 0x41
        const record = readOne(bytes.subarray(0, end + 1))
        assert.deepEqual(record, {
          kind: 'zero',
          offset,
          blockName: name,
          dataAt: 0,
          dataLength: 0,
          fill: 0x41,
        })
      },
    ),
  )
})

test('a record does not keep anything of the one before', () => {
  const items = [
    { kind: 'page', offset: 0x5000, blockName: 'pc.ram', fill: 0, data: page(7) },
    { kind: 'zero', offset: 0x6000, blockName: undefined, fill: 9, data: new Uint8Array(0) },
    { kind: 'xbzrle', offset: 0x7000, blockName: undefined, fill: 0, data: Uint8Array.of(0, 1, 5) },
    { kind: 'compress', offset: 0x8000, blockName: 'b', fill: 0, data: Uint8Array.of(1, 2) },
    { kind: 'multifd-flush', offset: 0, blockName: undefined, fill: 0, data: new Uint8Array(0) },
    { kind: 'mem-size', offset: 0x9000, blockName: undefined, fill: 0, data: new Uint8Array(0) },
    { kind: 'hook', offset: 0, blockName: undefined, fill: 0, data: new Uint8Array(0) },
    { kind: 'eos', offset: 0, blockName: undefined, fill: 0, data: new Uint8Array(0) },
  ] as const
  const reader = readerOf(concat(items.map(encodeRamItem)))
  const record = createRamRecord()
  for (const item of items) {
    readRamRecord(reader, record)
    assert.deepEqual(ramItem(record, reader.bytes), item)
  }
  assert(reader.atEnd())
})

test('flags that do not go together are refused', () => {
  const kinds = [0x002, 0x004, 0x008, 0x010, 0x040, 0x080, 0x100, 0x200]
  const continued = [0x022, 0x028, 0x060, 0x120]
  for (let flags = 0; flags < TARGET_PAGE_BYTES; flags++) {
    const bytes = new Uint8Array(8 + 2 + TARGET_PAGE_BYTES)
    writeRamWord(viewOf(bytes), 0, 0, flags)
    const name = flags & RAM_FLAGS.CONTINUE ? [] : [1, 97]
    // The rest is zeros: an empty delta or zlib stream, a page. Only a delta has a first byte that is not.
    bytes.set(flags & RAM_FLAGS.XBZRLE ? [...name, 1] : name, 8)
    if (kinds.includes(flags) || continued.includes(flags)) readOne(bytes)
    else assert.throws(() => readOne(bytes), { code: 'PROTOCOL', offset: 0 }, `flags ${flags.toString(16)}`)
  }
})

test('bad records are refused, at the offset of what is wrong', () => {
  const cases: readonly [string, string, number][] = [
    ['offset beyond 2^53', '0020000000000028', 0],
    ['EOS with an offset', '0000000000001010', 0],
    ['MULTIFD_FLUSH with an offset', '0000000000001200', 0],
    ['empty name', '0000000000000008 00', 8],
    ['unknown delta encoding', '0000000000000060 02', 8],
    ['delta longer than a page', '0000000000000060 01 1001', 9],
    ['compressed page too long', '0000000000000120 0000100f', 8],
  ]
  for (const [what, hex, offset] of cases) {
    assert.throws(() => readOne(fromHex(hex)), { code: 'PROTOCOL', offset }, what)
  }
})

test('no record is longer than the bound', () => {
  const name = 'n'.repeat(255)
  const longest = {
    kind: 'compress',
    offset: 0,
    blockName: name,
    fill: 0,
    data: new Uint8Array(4110),
  } as const
  const bytes = encodeRamItem(longest)
  assert.equal(bytes.length, RAM_RECORD_BYTES_MAX)
  assert.equal(readOne(bytes).dataLength, 4110)
})

test('names of blocks have 1 to 255 bytes', () => {
  assert.throws(() => blockNameBytes(''), assert.AssertionError)
  assert.throws(() => blockNameBytes('x'.repeat(256)), assert.AssertionError)
})
