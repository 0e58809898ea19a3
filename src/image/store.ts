// Puts staged pages into the file, on a thread of its own when the image is large: then receiving goes on meanwhile. Used by
// the stage, on the thread that receives; the thread is store-thread.ts.
//
// A ring of slots in shared memory: pages, and where they go. Jobs are done in order. Long runs go to the disk directly, past
// the page cache: nothing copies them there, and memory that others use is not spent on a guest that has been put away.

import assert from 'node:assert/strict'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import { errorFromMessage, SystemError } from '../errors.js'
import { addressOf } from '../os/memory.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { startThread } from '../thread.js'
import { writeExactly } from './file.js'

/** Pages in one job. */
export const SLOT_PAGES = 256
const SLOT_BYTES = SLOT_PAGES * TARGET_PAGE_BYTES
const SLOTS = 32
/** A run that is worth a turn of the disk of its own. */
const DIRECT_BYTES_MIN = 64 * TARGET_PAGE_BYTES
/** What goes to the disk directly, and where: the alignment of all file systems that are wide-spread. */
const DIRECT_ALIGNMENT = 4096
/**
 * Otherwise, in one write. More at once is much slower: for a long write the kernel takes large folios, whose memory a virtual
 * machine has often given back to its host (1 MiB a write: six times the system time of 256 KiB).
 */
const CACHED_BYTES_MAX = 32 * TARGET_PAGE_BYTES

/** Counters of jobs handed in and done; both only grow. `end`: no more will come. */
export const STORE_CELL = { queued: 0, done: 1, end: 2, failed: 3, count: 4 } as const

export interface StoreRing {
  readonly cells: Int32Array
  /** The slots, one after the other; their address is aligned for a direct write. */
  readonly pages: Uint8Array
  /** A slot: file offset, bytes. */
  readonly jobs: Float64Array
}

const JOB = { offset: 0, bytes: 1, size: 2 } as const

export interface Store {
  /** Where the next run of pages is to be put; at most `SLOT_PAGES`. Another one after each `put`. */
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
  const file: StoreFile = { path, fd, directFd: -1 }
  const helper = large ? startHelper(fd, path, ring) : undefined
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
    get slot() {
      return slot
    },
    put(offset, bytes) {
      ring.jobs.set([offset, bytes], (queued % slots) * JOB.size)
      queued++
      Atomics.store(cells, STORE_CELL.queued, queued)
      if (helper === undefined) doJob(ring, queued - 1, file)
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
      Atomics.add(cells, STORE_CELL.queued, 1)
      Atomics.notify(cells, STORE_CELL.queued)
    },
  }
}

/** A disk may be slow, but not that slow. */
const STALLED_MS = 120_000

function createRing(slots: number): StoreRing {
  const shared = (bytes: number): SharedArrayBuffer => new SharedArrayBuffer(bytes)
  const memory = new Uint8Array(shared(slots * SLOT_BYTES + DIRECT_ALIGNMENT))
  const start = DIRECT_ALIGNMENT - (addressOf(memory) % DIRECT_ALIGNMENT)
  return {
    cells: new Int32Array(shared(STORE_CELL.count * 4)),
    pages: memory.subarray(start, start + slots * SLOT_BYTES),
    jobs: new Float64Array(shared(slots * JOB.size * 8)),
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

/** Where pages go. `directFd`: the same file, opened for direct writes; -1 where there is none. */
export interface StoreFile {
  readonly path: string
  readonly fd: number
  readonly directFd: number
}

/** Writes the pages of one job; answers how many bytes of them directly. On whichever thread does the jobs. */
export function doJob(ring: StoreRing, job: number, file: StoreFile): number {
  const { cells, jobs, pages } = ring
  const slot = job % (pages.length / SLOT_BYTES)
  const at = slot * JOB.size
  const bytes = pages.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + jobs[at + JOB.bytes]!)
  const direct = writePages(file, bytes, jobs[at + JOB.offset]!)
  Atomics.store(cells, STORE_CELL.done, job + 1)
  Atomics.notify(cells, STORE_CELL.done)
  return direct
}

function writePages(file: StoreFile, bytes: Uint8Array, offset: number): number {
  const { path, fd, directFd } = file
  if (directFd >= 0 && bytes.length >= DIRECT_BYTES_MIN && writeDirect(directFd, path, bytes, offset))
    return bytes.length
  for (let at = 0; at < bytes.length; at += CACHED_BYTES_MAX)
    writeExactly(fd, path, bytes.subarray(at, at + CACHED_BYTES_MAX), offset + at)
  return 0
}

/** False where the file system took the flag, but does not write so. */
function writeDirect(fd: number, path: string, bytes: Uint8Array, offset: number): boolean {
  try {
    writeExactly(fd, path, bytes, offset)
    return true
  } catch (error) {
    if (error instanceof SystemError && error.errnoName === 'EINVAL') return false
    throw error
  }
}
