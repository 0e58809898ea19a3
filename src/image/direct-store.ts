// Puts staged pages into the file past the page cache: the memory of a host is for its VMs, and to write to that first takes longer. Used by
// the stage, on the thread that writes the image; the disk is at several writes while that goes on.

import { closeSync, constants, openSync } from 'node:fs'
import { SystemError } from '../errors.js'
import { type AsyncWrites, createAsyncWrites } from '../os/async-writes.js'
import { hugePages, mapAnonymous, viewOf } from '../os/mapping.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { onFile, writeExactly } from './file.js'
import type { Store } from './store.js'

/** Pages in one write. So many at once keep a disk busy; 2 MiB, and half as many, are as fast. */
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

/** `path` is open as `fd`. Undefined where the file system cannot, or the system has no more asynchronous writes. */
export function createDirectStore(fd: number, path: string): Store | undefined {
  const way = ifPossible(() => openDirectly(path))
  return way === undefined ? undefined : createRing(fd, path, way)
}

interface DirectWay {
  readonly direct: number
  readonly writes: AsyncWrites
}

/** @throws SystemError */
function openDirectly(path: string): DirectWay {
  const direct = onFile('open', path, () => openSync(path, constants.O_WRONLY | constants.O_DIRECT))
  try {
    return { direct, writes: createAsyncWrites(SLOTS) }
  } catch (error) {
    closeSync(direct)
    throw error
  }
}

function createRing(fd: number, path: string, { direct, writes }: DirectWay): Store {
  const memory = mapAnonymous(SLOTS * SLOT_BYTES)
  hugePages(memory.address, memory.length)
  const views = Array.from({ length: SLOTS }, (_, i) => viewOf(memory.address + i * SLOT_BYTES, SLOT_BYTES))
  const jobs: readonly Job[] = views.map(() => ({ start: 0, end: 0 }))
  let current = 0
  let failure: unknown
  let open = true

  /** What it has not written goes through the page cache: there a full disk says so. */
  function ended(slot: number, result: number): void {
    const { start, end } = jobs[slot]!
    const done = Math.max(0, result)
    jobs[slot]!.end = start
    if (done === end - start) return
    try {
      writeExactly(fd, path, views[slot]!.subarray(done, end - start), start + done)
    } catch (error) {
      failure ??= error
    }
  }

  /** Two writes of the same place have no order while both are under way. */
  function settle(start: number, end: number): void {
    while (jobs.some((job) => isBusy(job) && job.start < end && start < job.end)) writes.wait(ended)
    if (failure !== undefined) throw failure
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
      settle(jobs[current]!.start, jobs[current]!.end)
    },
    settle,
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

function ifPossible<T>(attempt: () => T): T | undefined {
  try {
    return attempt()
  } catch (error) {
    if (error instanceof SystemError) return undefined
    throw error
  }
}
