// Puts staged pages into the file past the page cache: for an image that will not be wanted soon, on a host whose memory is for its
// VMs. Used by the stage, on the thread that receives; the disk is at several writes while that goes on, and no other thread is needed.

import { closeSync, constants, openSync } from 'node:fs'
import { SystemError, UsageError } from '../errors.js'
import { createAsyncWrites } from '../os/async-writes.js'
import { errnoName } from '../os/libc.js'
import { hugePages, mapAnonymous, viewOf } from '../os/mapping.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { onFile, writeExactly } from './file.js'
import type { Store } from './store.js'

/** Pages in one write: what the disk is given at once, so many times over, keeps it busy (half of each is as fast, a quarter is not). */
const SLOT_PAGES = 256
const SLOT_BYTES = SLOT_PAGES * TARGET_PAGE_BYTES
const SLOTS = 16
/** Runs that are shorter go through the page cache: a disk is slow at many small writes. */
const DIRECT_PAGES_MIN = 8

/** What is being written from a slot. */
interface Job {
  start: number
  /** `start`: nothing. */
  end: number
}

/** `path` is open as `fd`. @throws UsageError where the file system cannot do it */
export function createDirectStore(fd: number, path: string): Store {
  const direct = openDirect(path)
  const writes = createAsyncWrites(SLOTS)
  const memory = mapAnonymous(SLOTS * SLOT_BYTES)
  hugePages(memory.address, memory.length)
  const views = Array.from({ length: SLOTS }, (_, i) => viewOf(memory.address + i * SLOT_BYTES, SLOT_BYTES))
  const jobs: readonly Job[] = views.map(() => ({ start: 0, end: 0 }))
  let current = 0
  let failure: unknown
  let open = true

  function ended(slot: number, result: number): void {
    const { start, end } = jobs[slot]!
    jobs[slot]!.end = start
    try {
      if (result < 0) throw new SystemError('write', errnoName(-result), path)
      // It may have been cut short: whether the disk is full, the rest tells.
      if (result < end - start)
        writeExactly(fd, path, views[slot]!.subarray(result, end - start), start + result)
    } catch (error) {
      failure ??= error
    }
  }

  /** Waits until one that is under way has ended, at least. @throws SystemError of any that has */
  function wait(): void {
    writes.wait(ended)
    if (failure !== undefined) throw failure
  }

  /** Waits for writes of these bytes that are under way: two at once have no order. */
  function settle(start: number, end: number): void {
    while (jobs.some((job) => isBusy(job) && job.start < end && start < job.end)) wait()
  }

  return {
    slotPages: SLOT_PAGES,
    get slot() {
      return views[current]!
    },
    put(offset, bytes) {
      settle(offset, offset + bytes)
      if (bytes < DIRECT_PAGES_MIN * TARGET_PAGE_BYTES) {
        writeExactly(fd, path, views[current]!.subarray(0, bytes), offset)
        return
      }
      writes.begin(direct, memory.address + current * SLOT_BYTES, bytes, offset, current)
      const job = jobs[current]!
      job.start = offset
      job.end = offset + bytes
      current = (current + 1) % SLOTS
      while (isBusy(jobs[current]!)) wait()
    },
    drain: () => settle(0, Number.MAX_SAFE_INTEGER),
    close() {
      if (!open) return
      open = false
      writes.close()
      memory.unmap()
      closeSync(direct)
    },
  }
}

const isBusy = ({ start, end }: Job): boolean => start < end

function openDirect(path: string): number {
  try {
    return onFile('open', path, () => openSync(path, constants.O_WRONLY | constants.O_DIRECT))
  } catch (error) {
    if (!(error instanceof SystemError && error.errnoName === 'EINVAL')) throw error
    throw new UsageError(
      'the file system of the image cannot be written to past the page cache (O_DIRECT): park without direct I/O',
    )
  }
}
