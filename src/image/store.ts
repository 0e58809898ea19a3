// Puts staged pages into the file and calculates the checksums of whole chunks, on a thread of its own when the image is
// large: then receiving goes on meanwhile. Used by the stage, on the thread that receives; the thread is store-thread.ts.
//
// A ring of slots in shared memory: pages, where they go, and what came of them. Jobs are done and settled in order.

import assert from 'node:assert/strict'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import { crc32 } from 'node:zlib'
import { errorFromMessage } from '../errors.js'
import { startWriteback } from '../os/mapping.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { startThread } from '../thread.js'
import { CHUNK_BYTES } from './checksums.js'
import { writeExactly } from './file.js'

export const SLOT_PAGES = 256
const SLOT_BYTES = SLOT_PAGES * TARGET_PAGE_BYTES
const SLOT_CHUNKS = SLOT_BYTES / CHUNK_BYTES
const SLOTS = 8

/** Counters of jobs handed in and done; both only grow. `end`: no more will come. */
export const STORE_CELL = { queued: 0, done: 1, end: 2, failed: 3, count: 4 } as const

export interface StoreRing {
  readonly cells: Int32Array
  readonly pages: Uint8Array
  /** A slot: file offset, bytes, index of the first whole chunk. */
  readonly jobs: Float64Array
  /** A slot: checksums of its whole chunks, in order. */
  readonly checksums: Uint32Array
}

const JOB = { offset: 0, bytes: 1, chunkAt: 2, size: 3 } as const

export interface Store {
  /** Where the next run of pages is to be put; at most `SLOT_PAGES`. Another one after each `put`. */
  readonly slot: Uint8Array
  /**
   * Writes the first `bytes` of the slot to `offset`. `chunkAt`: index of the first whole chunk in it. `settled` is called in
   * a later call of `put` or `drain`. @throws SystemError of this write or of an earlier one
   */
  put(offset: number, bytes: number, chunkAt: number, settled: (checksums: Uint32Array) => void): void
  /** Waits until all is written. @throws SystemError */
  drain(): void
  /** Nothing is written any more when it returns. Idempotent. */
  close(): void
}

/** `path` is for errors. `large`: worth a thread. */
export function createStore(fd: number, path: string, large: boolean): Store {
  const slots = large ? SLOTS : 1
  const ring = createRing(slots)
  const { cells } = ring
  const pending: ((checksums: Uint32Array) => void)[] = []
  const helper = large ? startHelper(fd, path, ring) : undefined
  let queued = 0
  let settled = 0

  const pagesOf = (job: number): Uint8Array =>
    ring.pages.subarray((job % slots) * SLOT_BYTES, ((job % slots) + 1) * SLOT_BYTES)
  let slot = pagesOf(0)

  /** Waits until at most `left` jobs are not done, and settles the others. */
  function settle(left: number): void {
    for (let done = Atomics.load(cells, STORE_CELL.done); queued - done > left; ) {
      const waited = Atomics.wait(cells, STORE_CELL.done, done, STALLED_MS)
      assert(waited !== 'timed-out', 'the thread that writes the image does not answer')
      done = Atomics.load(cells, STORE_CELL.done)
    }
    if (Atomics.load(cells, STORE_CELL.failed) === 1) helper?.throwFailure()
    for (const done = Atomics.load(cells, STORE_CELL.done); settled < done; settled++) {
      const at = (settled % slots) * SLOT_CHUNKS
      pending.shift()!(ring.checksums.subarray(at, at + SLOT_CHUNKS))
    }
  }

  return {
    get slot() {
      return slot
    },
    put(offset, bytes, chunkAt, whenSettled) {
      ring.jobs.set([offset, bytes, chunkAt], (queued % slots) * JOB.size)
      pending.push(whenSettled)
      queued++
      Atomics.store(cells, STORE_CELL.queued, queued)
      if (helper === undefined) doJob(ring, queued - 1, fd, path)
      else Atomics.notify(cells, STORE_CELL.queued)
      settle(slots - 1)
      slot = pagesOf(queued)
    },
    drain: () => settle(0),
    close() {
      if (helper === undefined || Atomics.load(cells, STORE_CELL.end) === 1) return
      try {
        settle(0)
      } catch {
        // The failure has been told, or does not matter any more.
      }
      Atomics.store(cells, STORE_CELL.end, 1)
      Atomics.notify(cells, STORE_CELL.queued)
    },
  }
}

/** A disk may be slow, but not that slow. */
const STALLED_MS = 120_000

function createRing(slots: number): StoreRing {
  const shared = (bytes: number): SharedArrayBuffer => new SharedArrayBuffer(bytes)
  return {
    cells: new Int32Array(shared(STORE_CELL.count * 4)),
    pages: new Uint8Array(shared(slots * SLOT_BYTES)),
    jobs: new Float64Array(shared(slots * JOB.size * 8)),
    checksums: new Uint32Array(shared(slots * SLOT_CHUNKS * 4)),
  }
}

function startHelper(fd: number, path: string, ring: StoreRing) {
  const { port1, port2 } = new MessageChannel()
  port1.unref()
  const url = new URL('./store-thread.js', import.meta.url)
  startThread(url, 'farfault store', { fd, path, ring, port: port2 }, [port2]).unref()
  let failure: Error | undefined
  return {
    throwFailure(): never {
      failure ??= errorFromMessage(receiveMessageOnPort(port1)!.message)
      throw failure
    },
  }
}

/** Writes the pages of one job. On whichever thread does the jobs. */
export function doJob(ring: StoreRing, job: number, fd: number, path: string): void {
  const { cells, jobs, pages, checksums } = ring
  const slot = job % (pages.length / SLOT_BYTES)
  const at = slot * JOB.size
  const offset = jobs[at + JOB.offset]!
  const bytes = pages.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + jobs[at + JOB.bytes]!)
  writeExactly(fd, path, bytes, offset)
  startWriteback(fd, offset, bytes.length)
  for (let chunk = jobs[at + JOB.chunkAt]!, i = 0; chunk + CHUNK_BYTES <= bytes.length; i++) {
    checksums[slot * SLOT_CHUNKS + i] = crc32(bytes.subarray(chunk, chunk + CHUNK_BYTES))
    chunk += CHUNK_BYTES
  }
  Atomics.store(cells, STORE_CELL.done, job + 1)
  Atomics.notify(cells, STORE_CELL.done)
}
