// Page data of an image on its way out: read in chunks, because a chunk is what has a checksum, into memory that stays in the
// processor's cache from the read over the check to the send. Many resumes of one image share the page cache. Source thread
// of a parked VM.
//
// A mapping of the file would spare the copy, and costs more: a fault for every few pages, and a checksum that is calculated
// over memory in small pages that no cache has seen. Measured: 1.5 times the processor time for each GiB.

import assert from 'node:assert/strict'
import { LIMITS } from '../limits.js'
import { type Mapping, mapAnonymous, viewOf } from '../os/mapping.js'
import { createBitmap } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Extent } from '../source/origin.js'
import { CHUNK_BYTES, CHUNK_PAGES, chunksIn } from './checksums.js'
import type { Image } from './image.js'

/** A page that is read is in a sender until it is released; that holds so many, each of a chunk of its own. */
const SLOTS = LIMITS.sendPairsMax

export interface ChunkReader {
  /**
   * Where the bytes of `most` pages are, or of those up to the end of their chunk; they stay until as many pages have been
   * released as were read, of the urgent ones or the others.
   * @throws ImageError with block and offset when they are not what was stored.
   */
  read(blockIndex: number, page: number, most: number, urgent: boolean): Extent
  release(pages: number, urgent: boolean): void
  close(): void
}

/** @param verify compare each chunk with its checksum when it is read first, where the image has a sidecar */
export function createChunkReader(image: Image, verify: boolean): ChunkReader {
  const extent: Extent = { address: 0, pages: 0 }
  const lanes = { urgent: createLane(), other: createLane() }
  const blocks = image.blocks.map(({ length }, i, all) => ({
    length,
    /** Number of its first chunk among those of all blocks. */
    firstChunk: all.slice(0, i).reduce((sum, before) => sum + chunksIn(before.length), 0),
    verified: createBitmap(chunksIn(length)),
  }))

  function load(lane: Lane, blockIndex: number, chunk: number): number {
    const slot = lane.slotOf.size
    assert(slot < SLOTS, 'more pages are read than can be sent')
    const { length, firstChunk, verified } = blocks[blockIndex]!
    const start = slot * CHUNK_BYTES
    const bytes = lane.view.subarray(start, start + Math.min(CHUNK_BYTES, length - chunk * CHUNK_BYTES))
    image.readChunk(blockIndex, chunk, bytes, verify && !verified.get(chunk))
    verified.set(chunk)
    lane.slotOf.set(firstChunk + chunk, slot)
    return slot
  }

  return {
    read(blockIndex, page, most, urgent) {
      const lane = urgent ? lanes.urgent : lanes.other
      const chunk = Math.floor(page / CHUNK_PAGES)
      const slot = lane.slotOf.get(blocks[blockIndex]!.firstChunk + chunk) ?? load(lane, blockIndex, chunk)
      const first = page % CHUNK_PAGES
      extent.address = lane.memory.address + slot * CHUNK_BYTES + first * TARGET_PAGE_BYTES
      extent.pages = Math.min(most, CHUNK_PAGES - first)
      lane.reading += extent.pages
      return extent
    },
    release(pages, urgent) {
      const lane = urgent ? lanes.urgent : lanes.other
      lane.reading = Math.max(0, lane.reading - pages)
      if (lane.reading === 0) lane.slotOf.clear()
    },
    close() {
      for (const { memory } of [lanes.urgent, lanes.other]) memory.unmap()
    },
  }
}

/** What is on its way over one channel. */
interface Lane {
  readonly memory: Mapping
  readonly view: Uint8Array
  /** Where each chunk is that pages were read from since all were released; slots are taken in order, and all given back. */
  readonly slotOf: Map<number, number>
  reading: number
}

function createLane(): Lane {
  const memory = mapAnonymous(SLOTS * CHUNK_BYTES, { noReserve: true })
  return { memory, view: viewOf(memory.address, memory.length), slotOf: new Map(), reading: 0 }
}
