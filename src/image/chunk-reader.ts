// Page data of an image on its way out, in chunks, because a chunk is what has a checksum. It stays where it is, in the page
// cache, which all resumes of an image share. One that lacks pages, and holds anything in their places in the file, is read into memory
// of ours and cleared there. So is one that somebody waits for: of a cold file that takes less time. Source thread of a parked VM.

import assert from 'node:assert/strict'
import { ImageError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { monotonicMs } from '../os/clock.js'
import { type Mapping, mapAnonymous, viewOf } from '../os/mapping.js'
import { createBitmap } from '../ram/bitmap.js'
import { blockOfPage, type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Extent } from '../source/origin.js'
import { CHUNK_BYTES, CHUNK_PAGES, chunksIn } from './checksums.js'
import { createChunkMap } from './chunk-map.js'
import type { Image } from './image.js'

/** A page that is read is in a sender until it is released; that holds so many, each of a chunk of its own. */
const SLOTS = LIMITS.sendPairsMax

export interface ChunkReader {
  /**
   * Where the bytes of `most` pages are, or of those up to the end of their chunk; they stay until as many pages have been
   * released as were read, of the urgent ones or the others, or for good (`lasting`).
   * @throws ImageError with block and offset when they are not what was stored.
   */
  read(blockIndex: number, page: number, most: number, urgent: boolean): Extent
  release(pages: number, urgent: boolean): void
  /**
   * The same for pages that are likely to be wanted, by their numbers among those of all blocks (`blocks`, in the image's order),
   * before they are; but reading all of them from disk is only begun, and after `maxMs`, or behind one that is damaged, the rest
   * is left to `read`, which says so.
   */
  prepare(pages: Uint32Array, blocks: readonly RamBlock[], maxMs: number): void
  close(): void
}

/** @param verify compare each chunk with its checksum when it is read first, where the image has a sidecar */
export function createChunkReader(image: Image, verify: boolean): ChunkReader {
  const extent: Extent = { address: 0, pages: 0, lasting: false }
  const unchecked = image.blocks.map(({ length }) => {
    const bitmap = createBitmap(chunksIn(length))
    if (verify) bitmap.setRange(0, bitmap.length)
    return bitmap
  })
  const map = createChunkMap(image, unchecked)
  const lanes = { urgent: createLane(), other: createLane() }
  const blocks = image.blocks.map(({ length }, i, all) => ({
    length,
    /** Number of its first chunk among those of all blocks. */
    firstChunk: all.slice(0, i).reduce((sum, before) => sum + chunksIn(before.length), 0),
  }))

  /** Where a copy of the chunk is. */
  function copied(lane: Lane, blockIndex: number, chunk: number): number {
    const { length, firstChunk } = blocks[blockIndex]!
    let slot = lane.slotOf.get(firstChunk + chunk)
    if (slot === undefined) {
      slot = lane.slotOf.size
      assert(slot < SLOTS, 'more pages are read than can be sent')
      const start = slot * CHUNK_BYTES
      const bytes = lane.view.subarray(start, start + Math.min(CHUNK_BYTES, length - chunk * CHUNK_BYTES))
      image.readChunk(blockIndex, chunk, bytes, unchecked[blockIndex]!.get(chunk))
      unchecked[blockIndex]!.clear(chunk)
      lane.slotOf.set(firstChunk + chunk, slot)
    }
    return lane.memory.address + slot * CHUNK_BYTES
  }

  function read(blockIndex: number, page: number, most: number, urgent: boolean): Extent {
    const lane = urgent ? lanes.urgent : lanes.other
    const chunk = Math.floor(page / CHUNK_PAGES)
    const first = page % CHUNK_PAGES
    const mapped = map.find(blockIndex, chunk, Math.ceil((first + most) / CHUNK_PAGES), urgent)
    const start = mapped === 0 ? copied(lane, blockIndex, chunk) : map.addressOf(blockIndex, chunk)
    extent.address = start + first * TARGET_PAGE_BYTES
    extent.pages = Math.min(most, Math.max(mapped, 1) * CHUNK_PAGES - first)
    extent.lasting = mapped !== 0
    lane.reading += extent.pages
    return extent
  }

  /** Of each chunk that has one of these pages, one that it has. */
  function placesOf(pages: Uint32Array, ramBlocks: readonly RamBlock[]): Iterable<Place> {
    const places = new Map<number, Place>()
    for (const flat of pages) {
      const { index, firstPage } = blockOfPage(ramBlocks, flat)
      const page = flat - firstPage
      if (image.blocks[index]!.present.get(page)) places.set(flat - (page % CHUNK_PAGES), { index, page })
    }
    return places.values()
  }

  function release(pages: number, urgent: boolean): void {
    const lane = urgent ? lanes.urgent : lanes.other
    lane.reading = Math.max(0, lane.reading - pages)
    if (lane.reading === 0) lane.slotOf.clear()
  }

  return {
    read,
    release,
    prepare(pages, ramBlocks, maxMs) {
      const endMs = monotonicMs() + maxMs
      const places = [...placesOf(pages, ramBlocks)]
      for (const { index, page } of places) map.expect(index, Math.floor(page / CHUNK_PAGES))
      try {
        for (const { index, page } of places) {
          if (monotonicMs() > endMs) break
          // The second time as if somebody waited: what runs for the first time then takes ten times as long.
          for (const urgent of [false, true]) {
            read(index, page, 1, urgent)
            release(1, urgent)
          }
        }
      } catch (error) {
        if (!(error instanceof ImageError)) throw error
      }
    },
    close() {
      map.close()
      for (const { memory } of [lanes.urgent, lanes.other]) memory.unmap()
    },
  }
}

interface Place {
  readonly index: number
  readonly page: number
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
