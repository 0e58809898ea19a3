// The store thread: writes the pages of a large image while more are received. Blocks in waiting for a job, in write, and in
// fdatasync: the disk is made to empty its own cache now and then, so that the fsync at the end has little left to do.

import { closeSync, constants, fdatasyncSync, openSync } from 'node:fs'
import { type MessagePort, workerData } from 'node:worker_threads'
import { errorToMessage } from '../errors.js'
import { onFile } from './file.js'
import { doJob, STORE_CELL, type StoreRing } from './store.js'

interface StoreThreadData {
  readonly fd: number
  readonly path: string
  readonly ring: StoreRing
  /** For the error that ends it. */
  readonly port: MessagePort
}

/** Written directly between two turns, bytes: a turn costs the disk a few milliseconds even if there is little to do. */
const TURN_BYTES = 64 * 1024 * 1024

const { fd, path, ring, port } = workerData as StoreThreadData
const { cells } = ring

/** A descriptor of its own: the image may be closed while a turn is under way. -1: this file system does not write directly. */
function openDirect(): number {
  try {
    return openSync(path, constants.O_WRONLY | constants.O_DIRECT)
  } catch {
    return -1
  }
}

function doJobs(directFd: number): void {
  let unsafe = 0
  for (let job = 0; ; job++) {
    while (Atomics.load(cells, STORE_CELL.queued) === job) Atomics.wait(cells, STORE_CELL.queued, job)
    if (Atomics.load(cells, STORE_CELL.end) === 1) return
    unsafe += doJob(ring, job, { path, fd, directFd })
    if (unsafe < TURN_BYTES) continue
    onFile('fdatasync', path, () => fdatasyncSync(directFd))
    unsafe = 0
  }
}

const directFd = openDirect()
try {
  doJobs(directFd)
} catch (error) {
  port.postMessage(errorToMessage(error))
  Atomics.store(cells, STORE_CELL.failed, 1)
  // Whoever waits, for whichever job, waits no more.
  Atomics.store(cells, STORE_CELL.done, 2 ** 31 - 1)
  Atomics.notify(cells, STORE_CELL.done)
} finally {
  if (directFd >= 0) closeSync(directFd)
}
