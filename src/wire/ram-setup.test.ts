import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { LIMITS } from '../limits.js'
import { encodeRamSetup, type RamBlockEntry, type RamSetupReadOptions, readRamSetup } from './ram-setup.js'
import { readerOf } from './reader.js'

const MiB = 2 ** 20
const POSTCOPY = { postcopy: true } as const
const PRECOPY = { postcopy: false } as const

const fromHex = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'))
const read = (bytes: Uint8Array, options: RamSetupReadOptions) => readRamSetup(readerOf(bytes), options)

const BLOCKS: readonly RamBlockEntry[] = [
  { name: 'm0', length: 256 * MiB, pageSize: 2 * MiB },
  { name: 'pc.bios', length: 262_144, pageSize: 4096 },
  { name: 'm1', length: 8 * MiB, pageSize: 2 * MiB },
]

test('a huge page size is in the list exactly when postcopy is on', () => {
  const without = encodeRamSetup(BLOCKS.slice(0, 1), PRECOPY)
  assert.deepEqual(without, fromHex('0000000010000004 02 6d30 0000000010000000 0000000000000010'))
  const withSize = encodeRamSetup(BLOCKS.slice(0, 1), POSTCOPY)
  assert.deepEqual(
    withSize,
    fromHex('0000000010000004 02 6d30 0000000010000000 0000000000200000 0000000000000010'),
  )
})

test('a receiver without RAM of its own learns the page sizes from the list', () => {
  assert.deepEqual(read(encodeRamSetup(BLOCKS, POSTCOPY), POSTCOPY), {
    total: 264 * MiB + 262_144,
    blocks: BLOCKS,
    multifdFlush: false,
  })
})

const entries = fc
  .uniqueArray(
    fc.record({
      name: fc
        .uint8Array({ minLength: 1, maxLength: 40 })
        .map((bytes) => Buffer.from(bytes).toString('latin1')),
      pages: fc.integer({ min: 1, max: 500 }),
      pageSize: fc.constantFrom(4096, 65_536, 2 * MiB, 1024 * MiB),
    }),
    { selector: ({ name }) => name, maxLength: 20 },
  )
  .map((list) => list.map(({ name, pages, pageSize }) => ({ name, length: pages * pageSize, pageSize })))

test('any list is read as it was written, whatever its names begin with', () => {
  fc.assert(
    fc.property(
      entries,
      fc.boolean(),
      fc.constantFrom(4096, 65_536),
      (blocks, multifdFlush, hostPageSize) => {
        const fitting = blocks.filter(({ pageSize }) => pageSize >= hostPageSize)
        const options = { postcopy: true, hostPageSize }
        const setup = read(encodeRamSetup(fitting, { ...options, multifdFlush }), options)
        assert.deepEqual([setup.blocks, setup.multifdFlush], [fitting, multifdFlush])
      },
    ),
  )
})

test('addresses follow with x-ignore-shared', () => {
  const blocks = [{ name: 'a', length: 8192, pageSize: 4096, address: 0xc0000 }]
  const options = { postcopy: false, ignoreShared: true }
  assert.deepEqual(read(encodeRamSetup(blocks, options), options).blocks, blocks)
  assert.throws(() => read(encodeRamSetup(blocks, options), { postcopy: true, ignoreShared: true }), {
    code: 'PROTOCOL',
  })
})

test('page sizes must be those of the blocks here', () => {
  const bytes = encodeRamSetup(BLOCKS, POSTCOPY)
  const hostPageSizeOf = (name: string) => (name === 'm1' ? 4096 : undefined)
  assert.throws(() => read(bytes, { postcopy: true, hostPageSizeOf }), { code: 'PROTOCOL', got: '0x200000' })
  read(bytes, { postcopy: true, hostPageSizeOf: (name) => (name === 'pc.bios' ? 4096 : 2 * MiB) })
})

test('lists that cannot be are refused', () => {
  const eos = '0000000000000010'
  const cases: readonly [string, string][] = [
    ['no total', eos],
    ['longer than the total', `0000000000001004 01 61 0000000000002000 ${eos}`],
    ['shorter than the total', `0000000000003004 01 61 0000000000002000 ${eos}`],
    ['a name twice', `0000000000002004 01 61 0000000000001000 01 61 0000000000001000 ${eos}`],
    ['not whole pages', `0000000000001004 01 61 0000000000000800 01 62 0000000000000800 ${eos}`],
    ['empty name', `0000000000001004 00 0000000000001000 ${eos}`],
    ['no EOS', '0000000000001004 01 61 0000000000001000 0000000000001022 00'],
    ['EOS with more', '0000000000001004 01 61 0000000000001000 0000000000001010'],
    ['too much RAM', `0020000000000004 01 61 0000000000001000 ${eos}`],
    ['page size no power of two', `0000000000003004 01 61 0000000000003000 0000000000003000 ${eos}`],
    ['page size below the target page', `0000000000001004 01 61 0000000000001000 0000000000000800 ${eos}`],
    ['page size of 2 GiB', `0000000080000004 01 61 0000000080000000 0000000080000000 ${eos}`],
    ['half a huge page', `0000000000100004 01 61 0000000000100000 0000000000200000 ${eos}`],
  ]
  for (const [what, hex] of cases)
    assert.throws(() => read(fromHex(hex), POSTCOPY), { code: 'PROTOCOL' }, what)
})

test('the number of blocks is bounded, also by empty blocks', () => {
  const blocks = (count: number) =>
    Array.from({ length: count }, (_, i) => ({ name: `b${i}`, length: 4096, pageSize: 4096 }))
  const most = LIMITS.ramBlocksMax
  assert.equal(read(encodeRamSetup(blocks(most), PRECOPY), PRECOPY).blocks.length, most)
  assert.throws(() => read(encodeRamSetup(blocks(most + 1), PRECOPY), PRECOPY), { code: 'PROTOCOL' })
  const empty = blocks(most + 1).map((block, i) => ({ ...block, length: i <= most - 1 ? 0 : 4096 }))
  assert.throws(() => read(encodeRamSetup(empty, PRECOPY), PRECOPY), { code: 'PROTOCOL' })
})
