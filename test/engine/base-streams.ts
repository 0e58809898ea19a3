// Sound streams of each kind, as lists of records that the mutations can take apart.

import { encodeDevice } from '../../src/wire/device-sections.js'
import type { Command } from '../../src/wire/messages.js'
import { encodePackage } from '../../src/wire/package.js'
import type { RamItem } from '../../src/wire/ram-item.js'
import { encodeStopTime } from '../../src/wire/stop-time.js'
import { encodeStreamItem, type StreamItem } from '../../src/wire/stream.js'
import { createRandom } from './random.js'

const PAGE_BYTES = 4096
const RAM_SECTION = 1
export const MACHINE = 'farfault-hostile'

export interface BlockShape {
  readonly name: string
  readonly length: number
  readonly pageSize: number
}

/** Each element is a record, or the smallest part of one that stands for itself. */
export type Pieces = readonly Uint8Array[]

export interface BaseStream {
  readonly name: string
  readonly pieces: Pieces
}

const command = (c: Command): StreamItem => ({ kind: 'command', command: c })
const nothing = new Uint8Array(0)
const record = (fields: Partial<RamItem> & Pick<RamItem, 'kind'>): StreamItem => ({
  kind: 'ram-record',
  record: { offset: 0, blockName: undefined, fill: 0, data: nothing, ...fields },
})

/** Most pages of a block of huge pages are zero, or a stream would be too long to spoil it often. */
const HUGE_DATA_EACH = 97

/** Target pages of a block, in order: the first one names the block. A zero page for each `zeroEach`th. */
function pages(block: BlockShape, from: number, to: number, salt: number, zeroEach: number): StreamItem[] {
  const items: StreamItem[] = []
  for (let page = from; page < to; page++) {
    const common = { offset: page * PAGE_BYTES, blockName: page === from ? block.name : undefined }
    const zero = block.pageSize > PAGE_BYTES ? page % HUGE_DATA_EACH !== 0 : page % zeroEach === zeroEach - 1
    items.push(
      record(zero ? { kind: 'zero', ...common } : { kind: 'page', ...common, data: content(page, salt) }),
    )
  }
  return items
}

function content(page: number, salt: number): Uint8Array {
  const data = new Uint8Array(PAGE_BYTES)
  const random = createRandom(page * 31 + salt)
  for (let i = 0; i < 64; i++) data[i * 64] = random.integer(256)
  data[0] = 1 + (page % 250)
  return data
}

const part = (...items: StreamItem[]): StreamItem[] => [
  { kind: 'ram-part', id: RAM_SECTION },
  ...items,
  record({ kind: 'eos' }),
  { kind: 'footer', id: RAM_SECTION },
]

const ending: readonly StreamItem[] = [
  { kind: 'ram-end', id: RAM_SECTION },
  record({ kind: 'eos' }),
  { kind: 'footer', id: RAM_SECTION },
]

function prefix(blocks: readonly BlockShape[], postcopy: boolean): StreamItem[] {
  const pageSizeSummary = blocks.reduce((all, { pageSize }) => all | pageSize, 0)
  const total = blocks.reduce((sum, { length }) => sum + length, 0)
  return [
    { kind: 'header', configuration: { machine: MACHINE } },
    command({ name: 'OPEN_RETURN_PATH' }),
    command({ name: 'PING', value: 1 }),
    ...(postcopy
      ? [command({ name: 'POSTCOPY_ADVISE', sizes: { pageSizeSummary, targetPageSize: PAGE_BYTES } })]
      : []),
    {
      kind: 'ram-start',
      section: { id: RAM_SECTION, idstr: 'ram', instance: 0, version: 4 },
      setup: { total, blocks, multifdFlush: false, postcopy, ignoreShared: false },
    },
    command({ name: 'PING', value: 5 }),
  ]
}

const wholeBlock = (block: BlockShape, salt: number): StreamItem[] =>
  pages(block, 0, block.length / PAGE_BYTES, salt, 3)

const discard = (block: BlockShape, ...ranges: (readonly [number, number])[]): StreamItem =>
  command({
    name: 'POSTCOPY_RAM_DISCARD',
    block: block.name,
    ranges: ranges.map(([start, length]) => ({ start, length })),
  })

const device = encodeDevice(100, 'hostile', 1, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8))
const stopTime = encodeStopTime(1_700_000_000_000_000)

function switchover(): StreamItem[] {
  const bytes = encodePackage({ devices: Buffer.concat([stopTime, device]), ping: 3 })
  return [command({ name: 'PACKAGED', length: bytes.length }), { kind: 'package', bytes }]
}

const deviceItems: readonly StreamItem[] = [
  {
    kind: 'device',
    section: { id: 100, idstr: 'hostile', instance: 0, version: 1 },
    body: Uint8Array.of(0, 0, 0, 2, 9, 9),
  },
  { kind: 'eof' },
]

/** Changes 4 bytes at 16, and 2 at 25. */
const delta = Uint8Array.of(16, 4, 1, 2, 3, 4, 5, 2, 8, 9)

/** Streams for these blocks. The first block must have eight host pages or a multiple. */
export function baseStreams(blocks: readonly BlockShape[]): BaseStream[] {
  const [first] = blocks as [BlockShape, ...BlockShape[]]
  const all = (salt: number): StreamItem[] => blocks.flatMap((block) => wholeBlock(block, salt))
  const unit = first.length / 8
  const unitPages = unit / PAGE_BYTES
  const streams: Record<string, StreamItem[]> = {
    'precopy alone': [
      ...prefix(blocks, false),
      ...part(...all(1)),
      ...part(...pages(first, 2, 9, 2, 4)),
      ...part(record({ kind: 'xbzrle', offset: 3 * PAGE_BYTES, blockName: first.name, data: delta })),
      ...ending,
      ...deviceItems,
    ],
    'advised, and precopy was enough': [
      ...prefix(blocks, true),
      ...part(...all(3)),
      ...part(...pages(first, 0, 5, 4, 2)),
      ...part(record({ kind: 'xbzrle', offset: PAGE_BYTES * 2, blockName: first.name, data: delta })),
      ...ending,
      ...deviceItems,
    ],
    'precopy, then postcopy': [
      ...prefix(blocks, true),
      ...part(...all(5)),
      ...part(...pages(first, 1, 4, 6, 2)),
      discard(first, [2 * unit, 2 * unit], [5 * unit, unit]),
      command({ name: 'PING', value: 2 }),
      ...switchover(),
      command({ name: 'PING', value: 4 }),
      ...part(...pages(first, 5 * unitPages, 6 * unitPages, 7, 3)),
      command({ name: 'PING', value: 0x1000 }),
      ...part(...pages(first, 2 * unitPages, 4 * unitPages, 8, 2)),
      ...ending,
      { kind: 'eof' },
    ],
    'postcopy at once': [
      ...prefix(blocks, true),
      ...blocks.map((block) => discard(block, [0, block.length])),
      ...switchover(),
      ...blocks.toReversed().flatMap((block) => part(...wholeBlock(block, 9))),
      command({ name: 'PING', value: 0x1001 }),
      ...ending,
      { kind: 'eof' },
    ],
  }
  // Page sizes are only announced with ADVISE.
  if (first.pageSize > PAGE_BYTES) delete streams['precopy alone']
  return Object.entries(streams).map(([name, items]) => ({ name, pieces: items.map(encodeStreamItem) }))
}
