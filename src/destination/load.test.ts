import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ProtocolError } from '../errors.js'
import { numberBlocks } from '../ram/block.js'
import { encodeRamItem, type RamItem } from '../wire/ram-item.js'
import { readerOf } from '../wire/reader.js'
import { createRamLoader } from './load.js'
import type { Placer } from './placer.js'

const PAGE = 4096
const BLOCKS = numberBlocks([
  { name: 'a', length: 4 * PAGE, pageSize: PAGE, address: 0 },
  { name: 'b', length: 2 * PAGE, pageSize: PAGE, address: 1 << 20 },
])
const nothing = new Uint8Array(0)
const EOS: Partial<RamItem> = { kind: 'eos', data: nothing }
const zero = (offset: number, blockName?: string): Partial<RamItem> => ({
  kind: 'zero',
  data: nothing,
  offset,
  blockName,
})
const page = (offset: number, blockName?: string): Partial<RamItem> => ({ kind: 'page', offset, blockName })

/** What the placer hears of a stream of bodies. */
function load(...bodies: Partial<RamItem>[][]): string[] {
  const heard: string[] = []
  const note =
    (what: string) =>
    (block: { name: string }, index: number): void =>
      void heard.push(`${what} ${block.name} ${index}`)
  const placer = {
    page: note('page'),
    zeroPage: note('zero'),
    delta: note('delta'),
    flush: () => {
      if (heard.at(-1) !== 'flush') heard.push('flush')
    },
  } as unknown as Placer
  const items = bodies.flat().map(
    (item): RamItem => ({
      kind: 'page',
      offset: 0,
      blockName: undefined,
      fill: 0,
      data: new Uint8Array(PAGE),
      ...item,
    }),
  )
  // Something behind, as in a stream: a loader that has enough in its buffer does not flush before each record.
  const behind = Buffer.alloc(64 * 1024)
  const loader = createRamLoader(
    readerOf(Buffer.concat([...items.map(encodeRamItem), behind])),
    BLOCKS,
    placer,
  )
  for (const _body of bodies) loader.loadBody()
  return heard
}

test('each kind of record, up to the EOS; a block holds until another is named, over bodies too', () => {
  assert.deepEqual(
    load(
      [page(0, 'a'), page(3 * PAGE), zero(PAGE, 'b'), EOS],
      [
        zero(0),
        { kind: 'xbzrle', offset: 0, data: Uint8Array.of(1, 1, 1) },
        { kind: 'multifd-flush', data: nothing },
        EOS,
      ],
    ),
    ['page a 0', 'page a 3', 'zero b 1', 'flush', 'zero b 0', 'delta b 0', 'flush'],
  )
})

for (const [what, item] of [
  ['the first page without a block', page(0)],
  ['a block that does not exist', page(0, 'c')],
  ['a block that every object has', page(0, 'constructor')],
  ['a page behind its block', page(4 * PAGE, 'a')],
  ['a page far behind its block', zero(2 ** 50, 'b')],
  ['a zero page of something else', { ...zero(0, 'a'), fill: 1 }],
  ['a compressed page', { kind: 'compress', blockName: 'a', data: nothing }],
  ['a total in the middle', { kind: 'mem-size', data: nothing }],
  ['a hook', { kind: 'hook', data: nothing }],
] as const) {
  test(`refused: ${what}`, () => {
    assert.throws(() => load([item as Partial<RamItem>, EOS]), ProtocolError)
  })
}
