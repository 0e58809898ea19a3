// The body of a RAM section: 8-byte words `offset | flags`, each followed by what its flags say. Pure; any thread.
//
// This is the hot part of the protocol: a word and its page are read and written without allocating, and records are
// handed out as places in the reader's buffer. The list of blocks that opens the RAM is in ram-setup.ts.
// Source: QEMU migration/ram.c, `save_page_header`, `ram_load_precopy`, `ram_load_postcopy`.

import assert from 'node:assert/strict'
import { hex, latin1Bytes } from './bytes.js'
import type { StreamReader } from './reader.js'
import { refuseAt } from './slice.js'

/** Unit of page records, bytes. Flags live in the bits below it. */
export const TARGET_PAGE_BYTES = 4096
const FLAG_MASK = TARGET_PAGE_BYTES - 1

/** Low bits of a word. CONTINUE goes with a kind; of the others exactly one is set. */
export const RAM_FLAGS = {
  ZERO: 0x002,
  MEM_SIZE: 0x004,
  PAGE: 0x008,
  EOS: 0x010,
  /** The block's name is left out: it is that of the record before on this channel. */
  CONTINUE: 0x020,
  XBZRLE: 0x040,
  HOOK: 0x080,
  COMPRESS_PAGE: 0x100,
  MULTIFD_FLUSH: 0x200,
} as const

interface KindShape {
  readonly flag: number
  /** About one page of a block: the block is named, or continued. */
  readonly ofPage: boolean
}

/** What a record can be, by the flag that says so. */
export const RAM_KINDS = {
  zero: { flag: RAM_FLAGS.ZERO, ofPage: true },
  'mem-size': { flag: RAM_FLAGS.MEM_SIZE, ofPage: false },
  page: { flag: RAM_FLAGS.PAGE, ofPage: true },
  eos: { flag: RAM_FLAGS.EOS, ofPage: false },
  xbzrle: { flag: RAM_FLAGS.XBZRLE, ofPage: true },
  hook: { flag: RAM_FLAGS.HOOK, ofPage: false },
  compress: { flag: RAM_FLAGS.COMPRESS_PAGE, ofPage: true },
  'multifd-flush': { flag: RAM_FLAGS.MULTIFD_FLUSH, ofPage: false },
} as const satisfies Readonly<Record<string, KindShape>>

export type RamRecordKind = keyof typeof RAM_KINDS

/** The same by flag; a hole is no kind. */
const KIND_OF_FLAG = new Array<(KindShape & { readonly kind: RamRecordKind }) | undefined>(FLAG_MASK + 1)
for (const [kind, shape] of Object.entries(RAM_KINDS) as [RamRecordKind, KindShape][]) {
  KIND_OF_FLAG[shape.flag] = { kind, ...shape }
}

/** Longest name of a block, bytes. */
const NAME_BYTES_MAX = 255

/** First byte of an XBZRLE body: the only encoding there is. */
export const XBZRLE_ENCODING = 0x01

/** zlib never makes a page longer than this (its `compressBound`), bytes. */
const COMPRESSED_BYTES_MAX = TARGET_PAGE_BYTES + (TARGET_PAGE_BYTES >>> 12) + 13

/**
 * No record is longer, bytes. A caller that holds places in the buffer uses them up before it reads a record with
 * less than this available.
 */
export const RAM_RECORD_BYTES_MAX = 8 + 1 + NAME_BYTES_MAX + 4 + COMPRESSED_BYTES_MAX

const HIGH_HALF = 2 ** 32
const HIGH_HALF_END = 2 ** 21

/** Writes a word: 8 bytes. `offset`: bytes in the block, a multiple of the target page below 2^53. */
export function writeRamWord(view: DataView, at: number, offset: number, flags: number): void {
  view.setUint32(at, offset / HIGH_HALF)
  // `|` takes the offset modulo 2^32, which is the low half.
  view.setUint32(at + 4, offset | flags)
}

/** The word that ends a RAM body, and the channel for urgent pages. */
export const RAM_END = new Uint8Array(8)
writeRamWord(new DataView(RAM_END.buffer), 0, 0, RAM_FLAGS.EOS)

/** Name of a block as it goes on the wire, without its length byte. */
export function blockNameBytes(name: string): Uint8Array {
  assert(
    name.length >= 1 && name.length <= NAME_BYTES_MAX,
    `bad length of block name ${JSON.stringify(name)}`,
  )
  return latin1Bytes(name)
}

/** Writes a name behind a word without CONTINUE. Returns the index after it. */
export function writeBlockName(bytes: Uint8Array, at: number, nameBytes: Uint8Array): number {
  bytes[at] = nameBytes.length
  bytes.set(nameBytes, at + 1)
  return at + 1 + nameBytes.length
}

/** One record of a RAM body. The same object is filled again for every record. */
export interface RamRecord {
  kind: RamRecordKind
  /** Bytes in the block; of 'mem-size' the sum of all block lengths. 0 for records that are not of a page. */
  offset: number
  /** Undefined: the block of the record before (CONTINUE), or a record that is not of a page. */
  blockName: string | undefined
  /** Where the record's data lies in the reader's buffer, until the next refill: page, XBZRLE delta or zlib stream. */
  dataAt: number
  dataLength: number
  /** Byte of which a 'zero' page consists. 0, but old versions let others pass. */
  fill: number
}

export function createRamRecord(): RamRecord {
  return { kind: 'eos', offset: 0, blockName: undefined, dataAt: 0, dataLength: 0, fill: 0 }
}

const RECORD = 'ram record'

/** Whether the next record is in the buffer as a whole, or is none that may come after the switch, which reading it tells. */
export function hasWholeRamRecord(reader: StreamReader): boolean {
  const { position, available } = reader
  if (available < 8) return false
  const flags = reader.view.getUint32(position + 4) & FLAG_MASK
  const shape = KIND_OF_FLAG[flags & ~RAM_FLAGS.CONTINUE]
  if (shape === undefined || !shape.ofPage) return true
  let length = 8
  if ((flags & RAM_FLAGS.CONTINUE) === 0) {
    if (available === 8) return false
    length += 1 + reader.bytes[position + 8]!
  }
  return (
    available >=
    (shape.kind === 'zero' ? length + 1 : Math.min(length + TARGET_PAGE_BYTES, RAM_RECORD_BYTES_MAX))
  )
}

/**
 * Reads one record into `record` and consumes it with its data; of 'mem-size' and 'hook' only the word.
 * The offset is not checked against any block. Errors: `ProtocolError` for flags that do not go together.
 */
export function readRamRecord(reader: StreamReader, record: RamRecord): void {
  const start = reader.take(8, RECORD)
  const low = reader.view.getUint32(start + 4)
  const flags = low & FLAG_MASK
  const shape = KIND_OF_FLAG[flags & ~RAM_FLAGS.CONTINUE]
  const continued = (flags & RAM_FLAGS.CONTINUE) !== 0
  if (shape === undefined || (continued && !shape.ofPage))
    refuse(reader, 8, 'unknown combination of flags', flags)
  const high = reader.view.getUint32(start)
  if (high >= HIGH_HALF_END) refuse(reader, 8, 'offset out of range, high half', high)

  record.kind = shape.kind
  record.offset = high * HIGH_HALF + (low - flags)
  record.blockName = undefined
  record.dataAt = 0
  record.dataLength = 0
  record.fill = 0
  if (!shape.ofPage) {
    // Only MEM_SIZE has something to say above its flags.
    if (record.offset !== 0 && shape.kind !== 'mem-size')
      refuse(reader, 8, 'offset where none belongs', record.offset)
    return
  }
  if (!continued) record.blockName = reader.idstr('block name')
  readPageData(reader, record)
}

function readPageData(reader: StreamReader, record: RamRecord): void {
  switch (record.kind) {
    case 'page':
      record.dataLength = TARGET_PAGE_BYTES
      break
    case 'zero':
      record.fill = reader.u8(RECORD)
      return
    case 'xbzrle': {
      const encoding = reader.u8(RECORD)
      if (encoding !== XBZRLE_ENCODING) refuse(reader, 1, 'unknown encoding of a page delta', encoding)
      record.dataLength = reader.u16(RECORD)
      if (record.dataLength > TARGET_PAGE_BYTES) refuse(reader, 2, 'page delta too long', record.dataLength)
      break
    }
    case 'compress':
      record.dataLength = reader.u32(RECORD)
      if (record.dataLength > COMPRESSED_BYTES_MAX)
        refuse(reader, 4, 'compressed page too long', record.dataLength)
      break
  }
  record.dataAt = reader.take(record.dataLength, RECORD)
}

function refuse(reader: StreamReader, bytesBack: number, what: string, got: number): never {
  refuseAt(reader.streamOffset - bytesBack, RECORD, what, undefined, hex(got))
}
