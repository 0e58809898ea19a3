// Page data of an image where the page cache has it: whole chunks, in a mapping of the file. Source thread of a parked VM.
//
// Nothing is touched before the kernel has said that it is there: a file that has become too short, or cannot be read, is an
// answer there, and would be the end of the process here.

import { discard, mapFile, populate, viewOf, willNeed } from '../os/mapping.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { CHUNK_BYTES, CHUNK_PAGES, chunkMask } from './checksums.js'
import type { Image, ImageBlock } from './image.js'

/** Page tables are given back after so many bytes: those of a large image would fill much memory. */
const FORGET_BYTES = 256 * 2 ** 20
/** A view cannot be much longer. */
const VIEW_BYTES = 2 ** 30
const ALL_PAGES = 2 ** CHUNK_PAGES - 1
/** So many are read at once: what goes without being asked for seldom goes alone. */
const AHEAD_CHUNKS_MIN = 4
/** And so many at most, where one has long followed the other: 4 MiB. */
const AHEAD_CHUNKS_MAX = 64

export interface ChunkMap {
  /**
   * Where the chunk is, found right; 0: it lacks pages, or cannot be had here, or (`urgent`) was not found before.
   * @throws ImageError when it is damaged
   */
  find(blockIndex: number, chunk: number, urgent: boolean): number
  close(): void
}

/** @param unchecked by block, chunks that are still to be compared with their checksums: none of their bits is left when they are */
export function createChunkMap(image: Image, unchecked: readonly Bitmap[]): ChunkMap {
  const blocks = image.blocks.map((block) => mapBlock(image.fd, block))
  let mappedBytes = 0

  function forget(): void {
    mappedBytes = 0
    for (const { address, length } of blocks) if (length > 0) discard(address, length)
  }

  return {
    find(blockIndex, chunk, urgent) {
      const block = blocks[blockIndex]!
      const address = block.address + chunk * CHUNK_BYTES
      if (block.found.get(chunk)) return address
      if (urgent) return 0
      if (chunkMask(block.present, chunk) !== ALL_PAGES || address >= block.address + block.length) return 0
      if (mappedBytes >= FORGET_BYTES) forget()
      block.readAhead(chunk)
      if (!populate(address, CHUNK_BYTES)) return 0
      mappedBytes += CHUNK_BYTES
      if (unchecked[blockIndex]!.get(chunk)) image.checkChunk(blockIndex, chunk, block.bytes(chunk))
      unchecked[blockIndex]!.clear(chunk)
      block.found.set(chunk)
      return address
    },
    close() {
      for (const block of blocks) block.unmap()
    },
  }
}

/** What a block has in whole chunks. */
function mapBlock(fd: number, { pagesOffset, length, present }: ImageBlock) {
  const chunks = Math.floor(length / CHUNK_BYTES)
  const bytes = chunks * CHUNK_BYTES
  const mapping = chunks === 0 ? undefined : mapFile(fd, bytes, { offset: pagesOffset, readOnly: true })
  const address = mapping?.address ?? 0
  const views: Uint8Array[] = []
  let next = 0
  let aheadEnd = 0
  let ahead = 0

  /**
   * The kernel's own way for a mapping reads around what is wanted, megabytes where the disk is set up so, and a guest waits
   * for them. So it is told: what is wanted, and the more beyond that, the longer one chunk has followed the other.
   */
  function readAhead(chunk: number): void {
    if (chunk !== next) {
      ahead = 0
      aheadEnd = chunk
    }
    next = chunk + 1
    if (next + ahead / 2 <= aheadEnd) return
    ahead = Math.min(Math.max(AHEAD_CHUNKS_MIN, 2 * ahead), AHEAD_CHUNKS_MAX)
    const end = Math.min(chunks, Math.max(next, aheadEnd) + ahead - 1)
    if (end > aheadEnd) willNeed(address + aheadEnd * CHUNK_BYTES, (end - aheadEnd) * CHUNK_BYTES)
    aheadEnd = end
  }

  return {
    ...{ present, address, length: bytes, readAhead },
    found: createBitmap(chunks),
    bytes(chunk: number): Uint8Array {
      const at = chunk * CHUNK_BYTES
      const start = at - (at % VIEW_BYTES)
      const index = start / VIEW_BYTES
      views[index] ??= viewOf(address + start, Math.min(VIEW_BYTES, bytes - start))
      return views[index].subarray(at - start, at - start + CHUNK_BYTES)
    },
    unmap: () => mapping?.unmap(),
  }
}
