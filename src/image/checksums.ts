// Checksums of an image: of each chunk of RAM that has a page, and a CRC-32 of all that is not RAM. Runs wherever an image is
// opened, written or verified. A page that is not present counts as zeros, whatever the file holds in its place.

import { crc32 } from 'node:zlib'
import { xxh64 } from '@node-rs/xxhash'
import { ImageError } from '../errors.js'
import type { Bitmap } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import type { MappedRamBlock } from '../wire/mapped-ram.js'
import { mappedRamBitmapBytes } from '../wire/mapped-ram.js'
import { type OpenFile, readExactly } from './file.js'

/** Half a word of the bitmap. */
export const CHUNK_PAGES = 16
export const CHUNK_BYTES = CHUNK_PAGES * TARGET_PAGE_BYTES
const ALL_PAGES = 2 ** CHUNK_PAGES - 1

export const chunksIn = (length: number): number => Math.ceil(length / CHUNK_BYTES)

/** Which pages of the chunk are present: bit i is the chunk's page i. */
export function chunkMask(present: Bitmap, chunk: number): number {
  return (present.words[chunk >>> 1]! >>> ((chunk & 1) * CHUNK_PAGES)) & ALL_PAGES
}

/** Chunks that have a present page. */
export function countChunks(present: Bitmap): number {
  let count = 0
  for (const word of present.words)
    count += ((word & ALL_PAGES) !== 0 ? 1 : 0) + (word >>> CHUNK_PAGES !== 0 ? 1 : 0)
  return count
}

/**
 * Checksum of a chunk whose absent pages are clear: the low half of its XXH64. A chunk that is served is checked while guests
 * wait, and this takes less than half the time of the CRC-32 that Node.js has.
 */
export const checksumOfBytes = (bytes: Uint8Array): number => Number(BigInt.asUintN(32, xxh64(bytes)))

/** Checksum of a chunk. `bytes`: the chunk, or the shorter end of the block; pages that are not present are cleared in it. */
export function chunkChecksum(bytes: Uint8Array, mask: number): number {
  clearAbsent(bytes, mask)
  return checksumOfBytes(bytes)
}

/** The file may hold anything where a page is not present. */
export function clearAbsent(bytes: Uint8Array, mask: number): void {
  if (mask === ALL_PAGES) return
  for (let page = 0, at = 0; at < bytes.length; page++, at += TARGET_PAGE_BYTES) {
    if ((mask & (1 << page)) === 0) bytes.fill(0, at, at + TARGET_PAGE_BYTES)
  }
}

/** Checksums of one block as they are kept: eight hexadecimal digits for each chunk that has a page, in order. */
export const CHECKSUM_DIGITS = 8
export const checksumDigits = (checksum: number): string =>
  checksum.toString(16).padStart(CHECKSUM_DIGITS, '0')

interface ChecksummedBlock {
  readonly length: number
  readonly pagesOffset: number
  readonly present: Bitmap
}

/** Read in one go, bytes. */
const STRIDE_BYTES = 16 * CHUNK_BYTES
const STRIDE_CHUNKS = STRIDE_BYTES / CHUNK_BYTES

/**
 * Checksums of a block, calculated from the file: `onChunk` for each chunk with a present page, ascending. Chunks for which
 * `known` is true are left out. Yields the bytes read after each stride that had to be read.
 */
export function* checksumBlock(
  file: OpenFile,
  block: ChecksummedBlock,
  onChunk: (chunk: number, checksum: number) => void,
  known: (chunk: number) => boolean = () => false,
): Generator<number, void> {
  const buffer = new Uint8Array(STRIDE_BYTES)
  const wanted = (chunk: number): boolean => chunkMask(block.present, chunk) !== 0 && !known(chunk)
  const chunks = chunksIn(block.length)
  for (let first = 0; first < chunks; first += STRIDE_CHUNKS) {
    const end = Math.min(first + STRIDE_CHUNKS, chunks)
    let from = first
    while (from < end && !wanted(from)) from++
    if (from === end) continue
    const start = from * CHUNK_BYTES
    const bytes = buffer.subarray(0, Math.min(end * CHUNK_BYTES, block.length) - start)
    readExactly(file, bytes, block.pagesOffset + start, 'page data')
    for (let chunk = from; chunk < end; chunk++) {
      if (!wanted(chunk)) continue
      const at = (chunk - from) * CHUNK_BYTES
      const mask = chunkMask(block.present, chunk)
      onChunk(chunk, chunkChecksum(bytes.subarray(at, at + CHUNK_BYTES), mask))
    }
    yield bytes.length
  }
}

/**
 * Checksum of everything that means something and is not page data: header, entries, bitmaps, and all behind the last
 * region. Not of the holes before the regions, which nobody reads.
 */
export function metadataChecksum(file: OpenFile, start: number, blocks: readonly MappedRamBlock[]): number {
  let checksum = 0
  let from = start
  const add = (end: number): void => {
    const bytes = new Uint8Array(end - from)
    readExactly(file, bytes, from, 'the metadata')
    checksum = crc32(bytes, checksum)
  }
  for (const { bitmapOffset, pagesOffset, length } of blocks) {
    add(bitmapOffset + mappedRamBitmapBytes(length))
    from = pagesOffset + length
  }
  if (file.bytes < from) throw new ImageError('the file ends inside page data', file.path, file.bytes)
  add(file.bytes)
  return checksum
}
