// Ways to spoil a stream: cut it, flip bits, put extreme values into its fields, drop, repeat and move records, and put
// records into it that a hostile peer would write.

import { encodeDevice } from '../../src/wire/device-sections.js'
import { type Command, encodeCommand } from '../../src/wire/messages.js'
import { encodeRamItem, type RamItem } from '../../src/wire/ram-item.js'
import {
  encodeSectionEnd,
  encodeSectionFull,
  encodeSectionPart,
  encodeSectionStart,
} from '../../src/wire/sections.js'
import type { Pieces } from './base-streams.js'
import type { Random } from './random.js'

/** Fields are at the front of a record; behind that are the contents of pages, where a change is no spoiling. */
const FIELD_BYTES = 40
const EXTREMES = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x0010_0000]

/** Records that a hostile peer would write: `records` may stand anywhere, `pages` where page records do. */
export interface Hostile {
  readonly records: readonly (() => Uint8Array)[]
  readonly pages: readonly (() => Uint8Array)[]
}

type Mutation = (pieces: Uint8Array[], random: Random, others: readonly Pieces[], hostile: Hostile) => void

function place(pieces: readonly Uint8Array[], random: Random): { index: number; at: number } {
  const index = random.integer(pieces.length)
  const { length } = pieces[index]!
  return { index, at: random.integer(random.oneIn(8) ? length : Math.min(length, FIELD_BYTES)) }
}

function edit(pieces: Uint8Array[], index: number, change: (bytes: Uint8Array) => void): void {
  const copy = new Uint8Array(pieces[index]!) // `slice` of a Buffer would be the same bytes
  change(copy)
  pieces[index] = copy
}

const MUTATIONS: Readonly<Record<string, Mutation>> = {
  truncate(pieces, random) {
    const { index, at } = place(pieces, random)
    pieces.length = index + 1
    pieces[index] = pieces[index]!.subarray(0, at)
  },
  'flip bits'(pieces, random) {
    for (let i = 0; i <= random.integer(3); i++) {
      const { index, at } = place(pieces, random)
      edit(pieces, index, (bytes) => {
        if (at < bytes.length) bytes[at]! ^= 1 << random.integer(8)
      })
    }
  },
  'extreme field'(pieces, random) {
    const { index, at } = place(pieces, random)
    const width = random.pick([1, 2, 4, 8])
    edit(pieces, index, (bytes) => {
      if (at + width > bytes.length) return
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
      const value = random.pick(EXTREMES)
      if (width === 1) view.setUint8(at, value)
      else if (width === 2) view.setUint16(at, value)
      else view.setUint32(at, value)
      if (width === 8) view.setUint32(at + 4, random.pick(EXTREMES))
    })
  },
  drop(pieces, random) {
    pieces.splice(random.integer(pieces.length), 1 + random.integer(random.oneIn(3) ? 8 : 1))
  },
  repeat(pieces, random) {
    const from = random.integer(pieces.length)
    const repeated = pieces.slice(from, from + 1 + random.integer(4))
    pieces.splice(random.oneIn(2) ? from : random.integer(pieces.length), 0, ...repeated)
  },
  swap(pieces, random) {
    const from = random.integer(pieces.length)
    const to = random.oneIn(2) ? Math.min(from + 1, pieces.length - 1) : random.integer(pieces.length)
    const held = pieces[from]!
    pieces[from] = pieces[to]!
    pieces[to] = held
  },
  'records of another stream'(pieces, random, others) {
    const other = random.pick(others)
    const from = random.integer(other.length)
    pieces.splice(random.integer(pieces.length), 0, ...other.slice(from, from + 1 + random.integer(6)))
  },
  'insert bytes'(pieces, random) {
    const { index, at } = place(pieces, random)
    const noise = Uint8Array.from({ length: 1 + random.integer(12) }, () => random.integer(256))
    const piece = pieces[index]!
    pieces[index] = Buffer.concat([piece.subarray(0, at), noise, piece.subarray(at)])
  },
  'hostile record'(pieces, random, _others, { records }) {
    if (records.length > 0) pieces.splice(random.integer(pieces.length + 1), 0, random.pick(records)())
  },
  /** The same where page records stand, so that it is read as one. */
  'hostile page'(pieces, random, _others, hostile) {
    const pages = pieces.flatMap((piece, index) =>
      piece.length > 4096 && piece.length < 4400 ? [index] : [],
    )
    if (pages.length > 0 && hostile.pages.length > 0)
      pieces.splice(random.pick(pages), 0, random.pick(hostile.pages)())
  },
}

const PAGE = new Uint8Array(4096).fill(0xab)
const HUGE = 2 ** 50

const page = (fields: Partial<RamItem>): (() => Uint8Array) => {
  return () =>
    encodeRamItem({ kind: 'page', offset: 0, blockName: undefined, fill: 0, data: PAGE, ...fields })
}
const nothing = new Uint8Array(0)

/** @param a, b: pages of the two RAM blocks, which have these names. */
const hostilePages = (a: number, b: number): readonly (() => Uint8Array)[] => [
  page({ offset: HUGE }),
  page({ offset: 2 ** 31 }),
  page({ blockName: 'a', offset: 2 ** 32 }),
  page({ blockName: 'a', offset: a * 4096 }),
  page({ blockName: 'b', offset: b * 4096 }),
  page({ blockName: 'b', offset: (b - 1) * 4096 }),
  page({ blockName: 'nobody' }),
  page({ blockName: '__proto__' }),
  page({ kind: 'zero', offset: HUGE, data: nothing }),
  page({ kind: 'zero', fill: 1, data: nothing }),
  page({ kind: 'zero', blockName: 'b', offset: b * 4096, data: nothing }),
  page({ kind: 'xbzrle', blockName: 'b', offset: 0, data: Uint8Array.of(0xff, 0x7f, 1, 1) }),
  page({ kind: 'xbzrle', blockName: 'b', offset: 0, data: Uint8Array.of(0x80, 0x1f, 0x80, 0x20, 1) }),
  page({ kind: 'xbzrle', blockName: 'b', offset: b * 4096, data: Uint8Array.of(1, 1, 1) }),
  page({ kind: 'xbzrle', blockName: 'a', offset: 4096, data: Uint8Array.of(1, 1, 1) }),
  page({ kind: 'compress', data: Uint8Array.of(1, 2, 3) }),
  page({ kind: 'hook', data: nothing }),
  page({ kind: 'mem-size', offset: HUGE, data: nothing }),
  page({ kind: 'multifd-flush', data: nothing }),
  page({ kind: 'eos', data: nothing }),
]

const command = (c: Command): (() => Uint8Array) => {
  return () => encodeCommand(c)
}

const discard = (block: string, ...ranges: (readonly [number, number])[]) =>
  command({
    name: 'POSTCOPY_RAM_DISCARD',
    block,
    ranges: ranges.map(([start, length]) => ({ start, length })),
  })

const sizes = (pageSizeSummary: number, targetPageSize: number) =>
  command({ name: 'POSTCOPY_ADVISE', sizes: { pageSizeSummary, targetPageSize } })

const hostileRecords = (a: number, b: number): readonly (() => Uint8Array)[] => [
  ...hostilePages(a, b),
  discard('a', [0, a * 4096]),
  discard('a', [0, (a + 1) * 4096]),
  discard('a', [(a - 1) * 4096, 2 * 4096]),
  discard('a', [a * 4096, 4096]),
  discard('a', [1, 4096]),
  discard('a', [0, 100]),
  discard('a', [0, 0]),
  discard('a', [HUGE, HUGE]),
  discard('nobody', [0, 4096]),
  discard('b', ...Array.from({ length: 4000 }, (_, i) => [(i % b) * 4096, 4096] as const)),
  command({ name: 'PACKAGED', length: 0 }),
  command({ name: 'PACKAGED', length: 0xffff_ffff }),
  command({ name: 'PACKAGED', length: 256 * 1024 * 1024 }),
  command({ name: 'PACKAGED', length: 5 }),
  command({ name: 'PING', value: 0xffff_ffff }),
  command({ name: 'OPEN_RETURN_PATH' }),
  command({ name: 'POSTCOPY_LISTEN' }),
  command({ name: 'POSTCOPY_RUN' }),
  command({ name: 'POSTCOPY_RESUME' }),
  command({ name: 'ENABLE_COLO' }),
  command({ name: 'SWITCHOVER_START' }),
  command({ name: 'RECV_BITMAP', block: 'a' }),
  command({ name: 'POSTCOPY_ADVISE', sizes: null }),
  sizes(4096, 4096),
  sizes(0, 0),
  sizes(2 ** 40, 2 ** 40),
  sizes(4096, 1),
  () => encodeSectionStart({ id: 1, idstr: 'ram', instance: 0, version: 4 }),
  () => encodeSectionStart({ id: 9, idstr: 'block', instance: 0, version: 1 }),
  () => encodeSectionStart({ id: 9, idstr: 'ram', instance: 0, version: 3 }),
  () => encodeSectionPart(1),
  () => encodeSectionPart(77),
  () => encodeSectionEnd(1),
  () => encodeDevice(5, 'x', 1, nothing),
  () => encodeDevice(5, 'farfault/stop-time', 1, nothing),
  () =>
    encodeSectionFull({ id: 5, idstr: 'x', instance: 0, version: 1 }, Uint8Array.of(0x0f, 0xff, 0xff, 0xff)),
  () =>
    encodeSectionFull({ id: 5, idstr: 'x', instance: 0, version: 1 }, Uint8Array.of(0xff, 0xff, 0xff, 0xff)),
  () => Uint8Array.of(0),
  () => Uint8Array.of(5),
  () => Uint8Array.of(6, 0xff, 0xff, 0xff, 0xff),
  () => Uint8Array.of(7),
  () => Uint8Array.of(8, 0xff, 0xff, 0xff, 0xff),
]

/** For a stream whose RAM blocks `a` and `b` have these lengths, bytes. */
export const hostileFor = (a: number, b: number): Hostile => ({
  records: hostileRecords(a / 4096, b / 4096),
  pages: hostilePages(a / 4096, b / 4096),
})

export const NOTHING_HOSTILE: Hostile = { records: [], pages: [] }

const KINDS = Object.keys(MUTATIONS)

/** A spoiled copy, and what was done to it. `others`: streams whose records may be mixed in. */
export function spoil(
  base: Pieces,
  random: Random,
  others: readonly Pieces[],
  hostile: Hostile,
): { bytes: Uint8Array; done: string[] } {
  const pieces = [...base]
  const done: string[] = []
  for (let i = 0; i <= random.integer(3) && pieces.length > 0; i++) {
    const kind = random.pick(KINDS)
    MUTATIONS[kind]!(pieces, random, others, hostile)
    done.push(kind)
  }
  return { bytes: Buffer.concat(pieces), done }
}
