// Page data of an image where the page cache has it: chunks, in a mapping of the file. Source thread of a parked VM.
//
// Nothing is touched before the kernel has said that it is there: a file that has become too short, or cannot be read, is an
// answer there, and would be the end of the process here. Where the page cache has it, and we may know that, to ask costs less
// than to have the kernel map each page: a touch maps as many at once.

import { fstatSync } from 'node:fs'
import { discard, endOfFile, isCached, mapFile, populate, viewOf, willNeed } from '../os/mapping.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { CHUNK_BYTES } from './checksums.js'
import type { Image, ImageBlock } from './image.js'

/** Page tables are given back after so many bytes: those of a large image would fill much memory. */
const FORGET_BYTES = 256 * 2 ** 20
/** A view cannot be much longer. */
const VIEW_BYTES = 2 ** 30
const EAGER_VIEWS = 16
/** So many are read at once: what goes without being asked for seldom goes alone. */
const AHEAD_CHUNKS_MIN = 4
/** And so many at most, where one has long followed the other: 4 MiB. */
const AHEAD_CHUNKS_MAX = 64

export interface ChunkMap {
  /**
   * How many chunks, of `most` from there on, are there and found right; 0: the first is damaged, or holds anything in the places of
   * pages that it lacks, or cannot be had here, or (`urgent`) is not in the page cache.
   */
  find(blockIndex: number, chunk: number, most: number, urgent: boolean): number
  /** Where that one is. */
  addressOf(blockIndex: number, chunk: number): number
  /** It will be wanted soon: the kernel is to read it, and nobody waits until it has. */
  expect(blockIndex: number, chunk: number): void
  close(): void
}

/** @param unchecked by block, chunks that are still to be compared with their checksums: none of their bits is left when they are */
export function createChunkMap(image: Image, unchecked: readonly Bitmap[]): ChunkMap {
  const blocks = image.blocks.map((block) => mapBlock(image.fd, block))
  const ours = isOurs(image.fd)
  let mappedBytes = 0

  function forget(): void {
    mappedBytes = 0
    for (const { address, length } of blocks) if (length > 0) discard(address, length)
  }

  /** Takes those from `first` to `end`, or to one that cannot be had so. Returns how many. `cached`: as far as we know. */
  function take(blockIndex: number, first: number, end: number, cached: boolean): number {
    const block = blocks[blockIndex]!
    if (mappedBytes >= FORGET_BYTES) forget()
    const whole = ours && endOfFile(image.fd) >= image.fileBytes
    if (!(cached && whole) && !populate(block.addressOf(first), (end - first) * CHUNK_BYTES)) return 0
    mappedBytes += (end - first) * CHUNK_BYTES
    for (let chunk = first; chunk < end; chunk++) {
      if (unchecked[blockIndex]!.get(chunk) && !image.isRight(blockIndex, chunk, block.bytes(chunk))) {
        block.apart.set(chunk) // if it is damaged, whoever copies it says so
        return chunk - first
      }
      unchecked[blockIndex]!.clear(chunk)
      block.found.set(chunk)
    }
    return end - first
  }

  return {
    find(blockIndex, chunk, most, urgent) {
      const block = blocks[blockIndex]!
      const { found } = block
      const limit = Math.min(chunk + most, found.length)
      if (chunk < limit && found.get(chunk)) return found.nextClear(chunk, limit) - chunk
      const behind = urgent ? Math.min(chunk + 1, limit) : limit
      let end = chunk
      while (end < behind && block.mayHave(end) && !found.get(end)) end++
      if (end === chunk) return 0
      const cached = isCached(block.addressOf(chunk), (end - chunk) * CHUNK_BYTES)
      if (urgent && !cached) return 0
      if (!urgent) block.readAhead(chunk, end, cached)
      return take(blockIndex, chunk, end, cached)
    },
    addressOf: (blockIndex, chunk) => blocks[blockIndex]!.addressOf(chunk),
    expect(blockIndex, chunk) {
      const block = blocks[blockIndex]!
      if (block.mayHave(chunk)) willNeed(block.addressOf(chunk), CHUNK_BYTES)
    },
    close() {
      for (const block of blocks) block.unmap()
    },
  }
}

/** The kernel tells us what the page cache has of it: of other files, it says that it has all. */
const isOurs = (fd: number): boolean => [0, fstatSync(fd).uid].includes(process.geteuid!())

/** What a block has, but for a shorter end. */
function mapBlock(fd: number, { pagesOffset, length }: ImageBlock) {
  const chunks = Math.floor(length / CHUNK_BYTES)
  const bytes = chunks * CHUNK_BYTES
  const mapping = chunks === 0 ? undefined : mapFile(fd, bytes, { offset: pagesOffset, readOnly: true })
  const address = mapping?.address ?? 0
  const views: Uint8Array[] = []
  function viewAt(start: number): Uint8Array {
    views[start / VIEW_BYTES] ??= viewOf(address + start, Math.min(VIEW_BYTES, bytes - start))
    return views[start / VIEW_BYTES]!
  }
  // Made before a guest waits: so much memory of a sudden makes V8 collect garbage for some milliseconds.
  for (let i = 0; i < EAGER_VIEWS && i * VIEW_BYTES < bytes; i++) viewAt(i * VIEW_BYTES)
  const apart = createBitmap(chunks)
  let next = 0
  let aheadEnd = 0
  let ahead = 0

  /**
   * The kernel's own way for a mapping reads around what is wanted, megabytes where the disk is set up so, and a guest waits
   * for them. So it is told: what is wanted, and the more beyond that, the longer one chunk has followed the other. Not where
   * chunks are there that nothing was told of: it would look up each page of those behind them.
   */
  function readAhead(first: number, behind: number, cached: boolean): void {
    if (cached && first >= aheadEnd) return
    if (first !== next) {
      ahead = 0
      aheadEnd = first
    }
    next = behind
    if (next + ahead / 2 <= aheadEnd) return
    ahead = Math.min(Math.max(AHEAD_CHUNKS_MIN, 2 * ahead), AHEAD_CHUNKS_MAX)
    const end = Math.min(chunks, Math.max(next, aheadEnd) + ahead - 1)
    if (end > aheadEnd) willNeed(address + aheadEnd * CHUNK_BYTES, (end - aheadEnd) * CHUNK_BYTES)
    aheadEnd = end
  }

  return {
    ...{ address, length: bytes, apart, readAhead },
    /** It is not the shorter end, and has not been found wrong: damaged, or because of what is in the places of pages that it lacks. */
    mayHave: (chunk: number): boolean => chunk < chunks && !apart.get(chunk),
    addressOf: (chunk: number): number => address + chunk * CHUNK_BYTES,
    found: createBitmap(chunks),
    bytes(chunk: number): Uint8Array {
      const at = chunk * CHUNK_BYTES
      const start = at - (at % VIEW_BYTES)
      return viewAt(start).subarray(at - start, at - start + CHUNK_BYTES)
    },
    unmap: () => mapping?.unmap(),
  }
}
