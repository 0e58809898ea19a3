// Body of the RAM SECTION_START: which blocks there are and how long they are. Pure; any thread.
//
//   u64 total|MEM_SIZE · for each block: str8 name · u64 length · [u64 page size] · [u64 address] · … · u64 EOS
//
// The list has no count: it ends when the lengths add up to the total.
// Source: QEMU migration/ram.c, `ram_save_setup`, `parse_ramblock`.

import assert from 'node:assert/strict'
import { LIMITS } from '../limits.js'
import { concat, hex, readU64 } from './bytes.js'
import { encode, idstr, many, record, u64 } from './codec.js'
import {
  createRamRecord,
  RAM_FLAGS,
  type RamRecord,
  type RamRecordKind,
  readRamRecord,
  TARGET_PAGE_BYTES,
} from './ram-stream.js'
import type { StreamReader } from './reader.js'
import { refuseAt } from './slice.js'

/** A block as the stream announces it. */
export interface RamBlockEntry {
  /** idstr: 1 to 255 bytes, unique. */
  readonly name: string
  /** Bytes, a multiple of the target page. */
  readonly length: number
  /** Page size of the block's memory, bytes. */
  readonly pageSize: number
  /** Guest physical address; only with the capability `x-ignore-shared`. */
  readonly address?: number
}

export interface RamSetupOptions {
  /** Was there a POSTCOPY_ADVISE with sizes? Only then do page sizes follow. */
  readonly postcopy: boolean
  /** Page size that is not worth mentioning, bytes: that of the host. 4096 unless given. */
  readonly hostPageSize?: number
  /** Capability `x-ignore-shared`: an address follows. QEMU does not allow it together with postcopy. */
  readonly ignoreShared?: boolean
}

export interface RamSetupReadOptions extends RamSetupOptions {
  /**
   * Page size of the block of that name on this side, if it has one. A block that is announced with another page size
   * is refused.
   */
  readonly hostPageSizeOf?: (name: string) => number | undefined
}

export interface RamSetup {
  /** Sum of all lengths, bytes. */
  readonly total: number
  readonly blocks: readonly RamBlockEntry[]
  /** MULTIFD_FLUSH stands before the end; without multifd it means nothing. */
  readonly multifdFlush: boolean
}

const entry = record({ name: idstr, length: u64 })
const words = many(u64)
const RECORD = 'list of RAM blocks'

/** The whole body, up to and with its EOS. */
export function encodeRamSetup(
  blocks: readonly RamBlockEntry[],
  options: RamSetupOptions & { readonly multifdFlush?: boolean },
): Uint8Array {
  const { postcopy, hostPageSize = TARGET_PAGE_BYTES, ignoreShared = false, multifdFlush = false } = options
  const total = blocks.reduce((sum, { length }) => sum + length, 0)
  assert(total % TARGET_PAGE_BYTES === 0, 'blocks are made of whole target pages')
  const parts = [encode(u64, total + RAM_FLAGS.MEM_SIZE)]
  for (const block of blocks) {
    parts.push(encode(entry, block))
    if (postcopy && block.pageSize !== hostPageSize) parts.push(encode(u64, block.pageSize))
    if (ignoreShared) parts.push(encode(u64, block.address ?? 0))
  }
  parts.push(encode(words, multifdFlush ? [RAM_FLAGS.MULTIFD_FLUSH, RAM_FLAGS.EOS] : [RAM_FLAGS.EOS]))
  return concat(parts)
}

/**
 * The whole body, up to and with its EOS.
 * Errors: `ProtocolError` for a list that is over the bounds, does not add up or has a name twice, and for sizes that
 * are not whole pages.
 */
export function readRamSetup(reader: StreamReader, options: RamSetupReadOptions): RamSetup {
  const word = createRamRecord()
  if (options.postcopy && options.ignoreShared === true) {
    refuse(reader, 'x-ignore-shared together with postcopy', 'one of them', 'both')
  }
  const first = readKind(reader, word)
  if (first !== 'mem-size') refuse(reader, 'does not begin with the total', 'MEM_SIZE', first)
  const total = word.offset
  if (total > LIMITS.ramBytesMax) refuse(reader, 'too much RAM', `at most ${LIMITS.ramBytesMax}`, `${total}`)

  const blocks = new Map<string, RamBlockEntry>()
  for (let left = total; left > 0; ) {
    const block = readEntry(reader, options)
    if (blocks.has(block.name)) refuse(reader, 'block is there twice', 'another name', block.name)
    if (blocks.size === LIMITS.ramBlocksMax)
      refuse(reader, 'too many blocks', `at most ${blocks.size}`, 'more')
    if (block.length > left) refuse(reader, 'blocks are longer than the total', `${left}`, `${block.length}`)
    blocks.set(block.name, block)
    left -= block.length
  }

  let last = readKind(reader, word)
  const multifdFlush = last === 'multifd-flush'
  if (multifdFlush) last = readKind(reader, word)
  if (last !== 'eos') refuse(reader, 'does not end after the last block', 'EOS', last)
  return { total, blocks: [...blocks.values()], multifdFlush }
}

function readKind(reader: StreamReader, word: RamRecord): RamRecordKind {
  readRamRecord(reader, word)
  return word.kind
}

function readEntry(reader: StreamReader, options: RamSetupReadOptions): RamBlockEntry {
  const { hostPageSize = TARGET_PAGE_BYTES, hostPageSizeOf } = options
  const { name, length } = reader.read(entry, RECORD)
  const pageSize = options.postcopy && pageSizeFollows(reader) ? reader.u64(RECORD) : hostPageSize
  const known = hostPageSizeOf?.(name)
  if (!isPageSize(pageSize)) refuse(reader, `bad page size of block ${name}`, 'a power of two', hex(pageSize))
  if (options.postcopy && known !== undefined && known !== pageSize) {
    refuse(reader, `other page size of block ${name}`, hex(known), hex(pageSize))
  }
  const unit = options.postcopy ? pageSize : TARGET_PAGE_BYTES
  if (length % unit !== 0) refuse(reader, `block ${name} is not made of whole pages`, hex(unit), hex(length))
  const block = { name, length, pageSize }
  return options.ignoreShared === true ? { ...block, address: reader.u64(RECORD) } : block
}

/**
 * Does a page size stand here, or the next thing? Nothing in the stream says so; QEMU derives it from its own block.
 * But it can be seen, and so a receiver can make its RAM from the list: a name never begins with 0, and a page
 * size always does. Only after the last block comes a word that begins with 0 too, and its flags are no page size.
 */
function pageSizeFollows(reader: StreamReader): boolean {
  const at = reader.need(8, RECORD)
  if (reader.bytes[at] !== 0) return false
  const next = readU64(reader.view, at)
  return next !== RAM_FLAGS.EOS && next !== RAM_FLAGS.MULTIFD_FLUSH
}

function isPageSize(bytes: number): boolean {
  return bytes >= TARGET_PAGE_BYTES && bytes <= LIMITS.hostPageBytesMax && (bytes & (bytes - 1)) === 0
}

function refuse(reader: StreamReader, what: string, expected: string, got: string): never {
  refuseAt(reader.streamOffset, RECORD, what, expected, got)
}
