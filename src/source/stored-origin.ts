// RAM and device state of a parked guest: the mapped file of an image. It does not run, so nothing is written, and stopping
// it is nothing. Source thread.

import { crc32 } from 'node:zlib'
import { ImageError } from '../errors.js'
import { monotonicUs, realtimeUs } from '../os/clock.js'
import { viewOf } from '../os/mapping.js'
import { bitmapBytes, createBitmap } from '../ram/bitmap.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Origin } from './origin.js'

/** Plain data, for the way to the source thread. Block by block, in the order of the RAM blocks. */
export interface StoredImage {
  readonly file: string
  /** Complete SECTION_FULL records. */
  readonly devices: Uint8Array
  /** One bit a target page: it is in the image. All others are zero. */
  readonly present: readonly SharedArrayBuffer[]
  /** Where each block's pages begin in the file, bytes: for errors. */
  readonly pagesOffsets: readonly number[]
  readonly checksums?: {
    readonly chunkBytes: number
    /** CRC-32 of each chunk of each block. */
    readonly crcs: readonly Uint32Array[]
  }
}

export function createStoredOrigin(blocks: readonly RamBlock[], image: StoredImage): Origin {
  const { devices, present } = image
  const verify = createVerifier(blocks, image)
  return {
    begin(populated) {
      for (const [i, bitmap] of populated.entries())
        bitmap.words.set(new Uint32Array(present[i]!, 0, bitmap.words.length))
    },
    collectWritten() {},
    isZero(block, page) {
      verify(block, page)
      return false // the image has holes where zeros were
    },
    stopAndSave: () => ({ stoppedAt: { monotonicUs: monotonicUs(), realtimeUs: realtimeUs() }, devices }),
    resume() {},
    words: {
      ifKept: '. The image is as it was, and can be resumed',
      ifGone: '. The virtual machine may have run: it lacks RAM and cannot go on. The image is as it was',
    },
    pushZeroPages: false,
    saysStopTime: false,
    close() {},
  }
}

/** Checks the chunk that a page lies in, once, just before its first page is sent. */
function createVerifier(
  blocks: readonly RamBlock[],
  image: StoredImage,
): (block: RamBlock, page: number) => void {
  const { checksums } = image
  if (checksums === undefined) return () => {}
  const { chunkBytes, crcs } = checksums
  const pagesPerChunk = chunkBytes / TARGET_PAGE_BYTES
  const verified = blocks.map((block) => {
    const chunks = Math.ceil(block.pages / pagesPerChunk)
    return createBitmap(chunks, new ArrayBuffer(bitmapBytes(chunks)))
  })
  const chunkView = createChunkViews(chunkBytes)
  return (block, page) => {
    const chunk = Math.floor(page / pagesPerChunk)
    if (verified[block.index]!.get(chunk)) return
    const expected = crcs[block.index]![chunk]!
    const got = crc32(chunkView(block, chunk))
    if (got !== expected) {
      const at = chunk * chunkBytes
      const what = `page data of RAM block "${block.name}" from offset ${at} on is damaged: CRC-32 ${got}, not ${expected}`
      throw new ImageError(what, image.file, image.pagesOffsets[block.index]! + at)
    }
    verified[block.index]!.set(chunk)
  }
}

/** A view costs more than the checksum of a page, so a block has few of them. */
const VIEW_BYTES = 1024 * 1024 * 1024

function createChunkViews(chunkBytes: number): (block: RamBlock, chunk: number) => Uint8Array {
  const views = new Map<number, Uint8Array>()
  return (block, chunk) => {
    const offset = chunk * chunkBytes
    const start = offset - (offset % VIEW_BYTES)
    const key = block.address + start
    let view = views.get(key)
    if (view === undefined) {
      view = viewOf(key, Math.min(VIEW_BYTES, block.length - start))
      views.set(key, view)
    }
    return view.subarray(offset - start, Math.min(offset - start + chunkBytes, view.length))
  }
}
