// Where pages are joined before they go to the file: one system call for many pages, in page order or not. Runs on the
// thread that writes the image. It also keeps the checksums of chunks that passed through whole, so that in the end only
// the others are read again.

import { readSync, writeSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { type Bitmap, createBitmap, difference, eachRun } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import type { MappedRamBlock } from '../wire/mapped-ram.js'
import { CHUNK_BYTES, CHUNK_PAGES, chunksIn } from './checksums.js'
import { onFile } from './file.js'

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
  flush(): void
}

const STAGE_PAGES = 256

export function createStage(fd: number, path: string): Stage {
  const bytes = new Uint8Array(STAGE_PAGES * TARGET_PAGE_BYTES)
  let block: PagesInWriting | undefined
  let first = 0
  let count = 0

  function flush(): void {
    if (block === undefined || count === 0) return
    writeExactly(fd, path, bytes.subarray(0, count * TARGET_PAGE_BYTES), place(block, first))
    block.written.setRange(first, first + count)
    checksumWholeChunks(block)
    count = 0
  }

  function checksumWholeChunks({ known, checksums }: PagesInWriting): void {
    const end = first + count
    for (let chunk = Math.floor(first / CHUNK_PAGES); chunk * CHUNK_PAGES < end; chunk++) {
      const at = chunk * CHUNK_PAGES - first
      if (at < 0 || at + CHUNK_PAGES > count) {
        known.clear(chunk)
        continue
      }
      const start = at * TARGET_PAGE_BYTES
      checksums[chunk] = crc32(bytes.subarray(start, start + CHUNK_BYTES))
      known.set(chunk)
    }
  }

  return {
    write(target, page, source, at) {
      if (block !== target || page !== first + count || count === STAGE_PAGES) {
        flush()
        block = target
        first = page
      }
      bytes.set(source.subarray(at, at + TARGET_PAGE_BYTES), count * TARGET_PAGE_BYTES)
      count++
      target.present.set(page)
    },
    clear(target, page, pages) {
      if (!target.present.any(page, page + pages)) return
      // What is staged must not be taken for a whole chunk any more.
      flush()
      target.present.clearRange(page, page + pages)
      target.known.clearRange(Math.floor(page / CHUNK_PAGES), Math.ceil((page + pages) / CHUNK_PAGES))
    },
    read(target, page, into) {
      if (!target.present.get(page)) {
        into.fill(0)
        return
      }
      flush()
      onFile('read', path, () => readSync(fd, into, 0, TARGET_PAGE_BYTES, place(target, page)))
    },
    flush,
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

/** @throws SystemError, `ENOSPC` when the disk is full. */
export function writeExactly(fd: number, path: string, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length; ) {
    const at = done
    done += onFile('write', path, () => writeSync(fd, bytes, at, bytes.length - at, offset + at))
  }
}
