// Where pages are joined before they go to the file: one system call for many pages, in page order or not. Runs on the
// thread that writes the image. It also keeps the checksums of chunks that passed through whole, so that in the end only
// the others are read again.

import { readSync } from 'node:fs'
import { type Bitmap, createBitmap, difference, eachRun } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import type { MappedRamBlock } from '../wire/mapped-ram.js'
import { CHUNK_BYTES, CHUNK_PAGES, checksumOfBytes, chunksIn } from './checksums.js'
import { createDirectStore } from './direct-store.js'
import { onFile } from './file.js'
import { createCachedStore } from './store.js'

/** A block whose pages are being written. */
export interface PagesInWriting extends MappedRamBlock {
  /** Pages that the file has, or will have when the stage is flushed. */
  readonly present: Bitmap
  /** Pages whose place in the file holds anything. */
  readonly written: Bitmap
  /** Checksums by chunk, right where `known` has the chunk's bit. */
  readonly checksums: Uint32Array
  readonly known: Bitmap
}

export function pagesInWriting(block: MappedRamBlock): PagesInWriting {
  const pages = block.length / TARGET_PAGE_BYTES
  const chunks = chunksIn(block.length)
  return {
    ...block,
    present: createBitmap(pages),
    written: createBitmap(pages),
    checksums: new Uint32Array(chunks),
    known: createBitmap(chunks),
  }
}

export interface Stage {
  /** One page, from index `at` of `bytes`; it is copied. */
  write(block: PagesInWriting, page: number, bytes: Uint8Array, at: number): void
  /** Pages that are zero from now on. */
  clear(block: PagesInWriting, page: number, pages: number): void
  read(block: PagesInWriting, page: number, into: Uint8Array): void
  /** All is in the file when it returns. */
  flush(): void
  /** Nothing is written any more when it returns. Idempotent. */
  close(): void
}

/** The file is open as `fd`. */
export function createStage(fd: number, path: string, pageCache: boolean): Stage {
  const store = (pageCache ? undefined : createDirectStore(fd, path)) ?? createCachedStore(fd, path)
  let block: PagesInWriting | undefined
  let first = 0
  let count = 0

  function handOver(): void {
    if (block === undefined || count === 0) return
    const pages = count
    count = 0
    block.written.setRange(first, first + pages)
    keepChecksums(block, first, pages, store.slot)
    store.put(place(block, first), pages * TARGET_PAGE_BYTES)
  }

  return {
    write(target, page, source, at) {
      if (block !== target || page !== first + count || page % store.slotPages === 0) {
        handOver()
        block = target
        first = page
      }
      store.slot.set(source.subarray(at, at + TARGET_PAGE_BYTES), count * TARGET_PAGE_BYTES)
      count++
      target.present.set(page)
    },
    clear(target, page, pages) {
      const holdsAny = target.present.nextSet(page)
      if (holdsAny < 0 || holdsAny >= page + pages) return
      // What is staged must not be taken for a whole chunk any more.
      handOver()
      target.present.clearRange(page, page + pages)
      target.known.clearRange(Math.floor(page / CHUNK_PAGES), Math.ceil((page + pages) / CHUNK_PAGES))
    },
    read(target, page, into) {
      if (!target.present.get(page)) {
        into.fill(0)
        return
      }
      handOver()
      const offset = place(target, page)
      store.settle(offset, offset + TARGET_PAGE_BYTES)
      onFile('read', path, () => readSync(fd, into, 0, TARGET_PAGE_BYTES, offset))
    },
    flush() {
      handOver()
      store.settle(0, Number.MAX_SAFE_INTEGER)
    },
    close: store.close,
  }
}

/** Of chunks that are written whole; of the others it is not known any more what they hold. */
function keepChecksums(block: PagesInWriting, first: number, count: number, bytes: Uint8Array): void {
  const { known, checksums } = block
  const end = first + count
  for (let chunk = Math.floor(first / CHUNK_PAGES); chunk * CHUNK_PAGES < end; chunk++) {
    if (chunk * CHUNK_PAGES >= first && (chunk + 1) * CHUNK_PAGES <= end) {
      const at = (chunk * CHUNK_PAGES - first) * TARGET_PAGE_BYTES
      checksums[chunk] = checksumOfBytes(bytes.subarray(at, at + CHUNK_BYTES))
      known.set(chunk)
    } else {
      known.clear(chunk)
    }
  }
}

const place = ({ pagesOffset }: MappedRamBlock, page: number): number =>
  pagesOffset + page * TARGET_PAGE_BYTES

/** Calls `punch` for every part of the file that holds pages which are zero now. */
export function eachStaleRun(block: PagesInWriting, punch: (offset: number, length: number) => void): void {
  eachRun(difference(block.written, block.present), (start, end) =>
    punch(place(block, start), (end - start) * TARGET_PAGE_BYTES),
  )
}
