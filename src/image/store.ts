// Puts staged pages into the file, on a thread of its own when the image is large: then receiving goes on meanwhile. Used by
// the stage, on the thread that receives; the threads are store-thread.ts and writeback-thread.ts.
//
// A ring of slots in shared memory: pages, and where they go. Jobs are done in order. The disk is a third party: whoever
// tells the kernel to begin with writing to it has to wait when its queue is full, so that is nobody who has other work.

import assert from 'node:assert/strict'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import { errorFromMessage } from '../errors.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { startThread } from '../thread.js'
import { writeExactly } from './file.js'

/**
 * Pages in one write, which stands at a multiple of its length: the kernel then keeps them in one large folio, and whoever resumes
 * from the page cache has them mapped and passed on in fewer steps (a GiB is touched in 15 ms, and in 31 where writes have 128 KiB,
 * in 80 with pages of their own). More at once is much slower where a virtual machine gives memory back to its host: that is what
 * still larger folios are made of (1 MiB a write: six times the system time).
 */
export const SLOT_PAGES = 128
const SLOT_BYTES = SLOT_PAGES * TARGET_PAGE_BYTES
const SLOTS = 16

/** Counters of jobs handed in and done; both only grow. `end`: no more will come. */
export const STORE_CELL = { queued: 0, done: 1, end: 2, failed: 3, count: 4 } as const

export interface StoreRing {
  readonly cells: Int32Array
  readonly pages: Uint8Array
  /** A slot: file offset, bytes. */
  readonly jobs: Float64Array
}

const JOB = { offset: 0, bytes: 1, size: 2 } as const

export interface Store {
  /** Pages in one write at most. It stands at a multiple of its length then. */
  readonly slotPages: number
  /** Where the next run of pages is to be put. Another one after each `put`. */
  readonly slot: Uint8Array
  /** Writes the first `bytes` of the slot to `offset`. @throws SystemError of this write or of an earlier one */
  put(offset: number, bytes: number): void
  /** Waits until all is written. @throws SystemError */
  drain(): void
  /** Nothing is written any more when it returns. Idempotent. */
  close(): void
}

/** `path` is for errors. `large`: worth threads. */
export function createStore(fd: number, path: string, large: boolean): Store {
  const slots = large ? SLOTS : 1
  const ring = createRing(slots)
  const { cells } = ring
  const helper = large ? startHelpers(fd, path, ring) : undefined
  let queued = 0

  const pagesOf = (job: number): Uint8Array =>
    ring.pages.subarray((job % slots) * SLOT_BYTES, ((job % slots) + 1) * SLOT_BYTES)
  let slot = pagesOf(0)

  /** Waits until at most `left` jobs are not done. */
  function settle(left: number): void {
    for (let done = Atomics.load(cells, STORE_CELL.done); queued - done > left; ) {
      const waited = Atomics.wait(cells, STORE_CELL.done, done, STALLED_MS)
      assert(waited !== 'timed-out', 'the thread that writes the image does not answer')
      done = Atomics.load(cells, STORE_CELL.done)
    }
    if (Atomics.load(cells, STORE_CELL.failed) === 1) helper?.throwFailure()
  }

  return {
    slotPages: SLOT_PAGES,
    get slot() {
      return slot
    },
    put(offset, bytes) {
      ring.jobs.set([offset, bytes], (queued % slots) * JOB.size)
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
      // A thread that is about to wait for the next value does not miss that this is the last one.
      for (const cell of [STORE_CELL.queued, STORE_CELL.done]) {
        Atomics.add(cells, cell, 1)
        Atomics.notify(cells, cell)
      }
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
  }
}

function startHelpers(fd: number, path: string, ring: StoreRing) {
  const { port1, port2 } = new MessageChannel()
  port1.unref()
  const url = (file: string): URL => new URL(file, import.meta.url)
  startThread(url('./store-thread.js'), 'farfault store', { fd, path, ring, port: port2 }, [port2]).unref()
  startThread(url('./writeback-thread.js'), 'farfault writeback', { path, cells: ring.cells }).unref()
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
  const { cells, jobs, pages } = ring
  const slot = job % (pages.length / SLOT_BYTES)
  const at = slot * JOB.size
  const bytes = pages.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + jobs[at + JOB.bytes]!)
  writeExactly(fd, path, bytes, jobs[at + JOB.offset]!)
  Atomics.store(cells, STORE_CELL.done, job + 1)
  Atomics.notify(cells, STORE_CELL.done)
}
