// The mapped-ram form of a migration file: every page has one place in the file. Pure; any thread.
//
//   … · SECTION_START of RAM · u64 total|MEM_SIZE
//     for each block: str8 name · u64 length · header · bitmap · (hole) · pages · u64 EOS · footer · …
//
// The list is that of ram-setup.ts, with a header, a bitmap and a region of `length` bytes behind each entry. A set bit says
// that the page is in its place; a clear one that the page is zero, whatever its place holds.
// Source: QEMU docs/devel/migration/mapped-ram.rst; migration/ram.c, `mapped_ram_setup_ramblock`, `parse_ramblock_mapped_ram`.

import assert from 'node:assert/strict'
import { LIMITS } from '../limits.js'
import { concat, hex } from './bytes.js'
import { encode, idstr, record, u32, u64 } from './codec.js'
import { createRamRecord, RAM_FLAGS, readRamRecord, TARGET_PAGE_BYTES } from './ram-stream.js'
import type { StreamReader } from './reader.js'
import { refuseAt } from './slice.js'

/** Capability in the configuration section that announces the form. */
export const MAPPED_RAM = 'mapped-ram'

/** Page regions begin at a multiple of this when we write, as when QEMU does. A reader needs whole pages only. */
export const MAPPED_RAM_ALIGNMENT_BYTES = 1024 * 1024

const VERSION = 1

const blockHeader = record({ version: u32, pageSize: u64, bitmapOffset: u64, pagesOffset: u64 })
export const MAPPED_RAM_HEADER_BYTES = blockHeader.fixed!

const entry = record({ name: idstr, length: u64 })
const RECORD = 'mapped-ram block'

/** A block and where it lies. Offsets are absolute: from the start of the file, not of the stream in it. */
export interface MappedRamBlock {
  readonly name: string
  /** Bytes of RAM, and of the page region. */
  readonly length: number
  /** Where the block's entry in the list begins. */
  readonly entryOffset: number
  readonly bitmapOffset: number
  readonly pagesOffset: number
}

/** Length of a block's bitmap in the file, bytes: whole 64-bit words, little endian. */
export const mappedRamBitmapBytes = (length: number): number => Math.ceil(length / TARGET_PAGE_BYTES / 64) * 8

/** Places for blocks, the first entry of which is at file offset `at`. `end`: where the EOS of the list goes. */
export function layOutMappedRam(
  at: number,
  blocks: readonly { readonly name: string; readonly length: number }[],
): { readonly blocks: readonly MappedRamBlock[]; readonly end: number } {
  let end = at
  const placed = blocks.map(({ name, length }) => {
    assert(length % TARGET_PAGE_BYTES === 0, 'blocks are made of whole target pages')
    const entryOffset = end
    const bitmapOffset = entryOffset + entry.size({ name, length }) + MAPPED_RAM_HEADER_BYTES
    const pagesOffset = alignUp(bitmapOffset + mappedRamBitmapBytes(length))
    end = pagesOffset + length
    return { name, length, entryOffset, bitmapOffset, pagesOffset }
  })
  return { blocks: placed, end }
}

const alignUp = (offset: number): number =>
  Math.ceil(offset / MAPPED_RAM_ALIGNMENT_BYTES) * MAPPED_RAM_ALIGNMENT_BYTES

/** The word before the first entry. */
export function encodeMappedRamTotal(blocks: readonly { readonly length: number }[]): Uint8Array {
  return encode(u64, blocks.reduce((sum, { length }) => sum + length, 0) + RAM_FLAGS.MEM_SIZE)
}

/** An entry and its header; the bitmap follows. */
export function encodeMappedRamEntry(block: MappedRamBlock): Uint8Array {
  const { bitmapOffset, pagesOffset } = block
  return concat([
    encode(entry, block),
    encode(blockHeader, { version: VERSION, pageSize: TARGET_PAGE_BYTES, bitmapOffset, pagesOffset }),
  ])
}

/** A body without pages: of SECTION_PART and SECTION_END in this form, and the end of the list. */
export const EMPTY_RAM_BODY: Uint8Array = encode(u64, RAM_FLAGS.EOS)

/**
 * Reads the list up to and with its EOS. `goTo` makes a reader of the file at an offset: page regions are passed over.
 * Answers the blocks and the reader to go on with.
 * Errors: `ProtocolError`, its offset that of the entry or of the field, for all that breaks the rules of the form.
 */
export function readMappedRamSetup(
  reader: StreamReader,
  goTo: (offset: number) => StreamReader,
): { readonly blocks: readonly MappedRamBlock[]; readonly reader: StreamReader } {
  const word = createRamRecord()
  readRamRecord(reader, word)
  if (word.kind !== 'mem-size')
    refuse(reader.streamOffset - 8, 'list does not begin with the total', 'MEM_SIZE', word.kind)
  const total = word.offset
  if (total > LIMITS.ramBytesMax)
    refuse(reader.streamOffset - 8, 'too much RAM', `at most ${LIMITS.ramBytesMax}`, `${total}`)
  const blocks = new Map<string, MappedRamBlock>()
  let at = reader
  for (let left = total; left > 0; ) {
    const block = readBlock(at)
    const { name, length, entryOffset } = block
    if (blocks.has(name)) refuse(entryOffset, 'block is there twice', 'another name', name)
    if (blocks.size === LIMITS.ramBlocksMax)
      refuse(entryOffset, 'too many blocks', `at most ${blocks.size}`, 'more')
    if (length > left) refuse(entryOffset, 'blocks are longer than the total', `${left}`, `${length}`)
    blocks.set(name, block)
    left -= length
    at = goTo(block.pagesOffset + length)
  }
  readEmptyRamBody(at)
  return { blocks: [...blocks.values()], reader: at }
}

function readBlock(reader: StreamReader): MappedRamBlock {
  const entryOffset = reader.streamOffset
  const { name, length } = reader.read(entry, RECORD)
  if (length % TARGET_PAGE_BYTES !== 0)
    refuse(entryOffset, `block ${name} is not made of whole pages`, hex(TARGET_PAGE_BYTES), hex(length))
  const headerOffset = reader.streamOffset
  const { version, pageSize, bitmapOffset, pagesOffset } = reader.read(blockHeader, RECORD)
  const bitmapBytes = mappedRamBitmapBytes(length)
  const check = (at: number, sound: boolean, what: string, expected: string, got: string): void => {
    if (!sound) refuse(headerOffset + at, `${what} of block ${name}`, expected, got)
  }
  check(0, version === VERSION, 'unknown version of the header', `${VERSION}`, `${version}`)
  check(4, pageSize === TARGET_PAGE_BYTES, 'other page size', `${TARGET_PAGE_BYTES}`, `${pageSize}`)
  const bitmapExpected = reader.streamOffset
  check(12, bitmapOffset === bitmapExpected, 'wrong bitmap offset', `${bitmapExpected}`, `${bitmapOffset}`)
  const pagesMin = bitmapOffset + bitmapBytes
  check(20, pagesOffset >= pagesMin, 'pages overlap the bitmap', `at least ${pagesMin}`, `${pagesOffset}`)
  check(20, pagesOffset % TARGET_PAGE_BYTES === 0, 'unaligned pages', 'whole pages', hex(pagesOffset))
  return { name, length, entryOffset, bitmapOffset, pagesOffset }
}

/** The body of a RAM section that has no pages. Errors: `ProtocolError` for any other record: pages have their places. */
export function readEmptyRamBody(reader: StreamReader): void {
  const word = createRamRecord()
  do {
    const offset = reader.streamOffset
    readRamRecord(reader, word)
    // Without multifd channels MULTIFD_FLUSH says nothing.
    if (word.kind !== 'eos' && word.kind !== 'multifd-flush')
      refuse(offset, 'record not legal in a mapped-ram file', 'EOS', word.kind)
  } while (word.kind !== 'eos')
}

/** First bit at or after the last page that is set in a bitmap's padding, or -1. `bytes`: the bitmap in the file. */
export function mappedRamPaddingBit(bytes: Uint8Array, length: number): number {
  for (let bit = length / TARGET_PAGE_BYTES; bit < bytes.length * 8; bit++) {
    if (((bytes[bit >>> 3]! >>> (bit & 7)) & 1) !== 0) return bit
  }
  return -1
}

function refuse(offset: number, what: string, expected: string, got: string): never {
  refuseAt(offset, RECORD, what, expected, got)
}
