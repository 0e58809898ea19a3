// Page data of an image where the page cache has it: whole chunks, in a mapping of the file. Source thread of a parked VM.
//
// Nothing is touched before the kernel has said that it is there: a file that has become too short, or cannot be read, is an
// answer there, and would be the end of the process here.

import { discard, mapFile, populate, sequential, viewOf } from '../os/mapping.js'
import { createBitmap } from '../ram/bitmap.js'
import { CHUNK_BYTES, CHUNK_PAGES, chunkMask } from './checksums.js'
import type { Image, ImageBlock } from './image.js'

/** Page tables are given back after so many bytes: those of a large image would fill much memory. */
const FORGET_BYTES = 256 * 2 ** 20
/** A view cannot be much longer. */
const VIEW_BYTES = 2 ** 30
const ALL_PAGES = 2 ** CHUNK_PAGES - 1

export interface ChunkMap {
  /**
   * Where the chunk is, once it has been found right; 0: it lacks pages, or cannot be had here.
   * @throws ImageError when it is damaged
   */
  find(blockIndex: number, chunk: number): number
  close(): void
}

/** @param verify compare each chunk with its checksum when it is wanted first, where the image has a sidecar */
export function createChunkMap(image: Image, verify: boolean): ChunkMap {
  const blocks = image.blocks.map((block) => mapBlock(image.fd, block))
  let mappedBytes = 0

  function forget(): void {
    mappedBytes = 0
    for (const { address, length } of blocks) if (length > 0) discard(address, length)
  }

  return {
    find(blockIndex, chunk) {
      const block = blocks[blockIndex]!
      const address = block.address + chunk * CHUNK_BYTES
      if (block.found.get(chunk)) return address
      if (chunkMask(block.present, chunk) !== ALL_PAGES || address >= block.address + block.length) return 0
      if (mappedBytes >= FORGET_BYTES) forget()
      if (!populate(address, CHUNK_BYTES)) return 0
      mappedBytes += CHUNK_BYTES
      if (verify) image.checkChunk(blockIndex, chunk, block.bytes(chunk))
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
  if (chunks > 0) sequential(address, bytes)
  const views: Uint8Array[] = []
  return {
    ...{ present, address, length: bytes },
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
