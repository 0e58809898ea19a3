// The store thread: writes the pages of a large image while more are received. Blocks in waiting for a job, and in write.

import { type MessagePort, workerData } from 'node:worker_threads'
import { errorToMessage } from '../errors.js'
import { doJob, STORE_CELL, type StoreRing } from './store.js'

interface StoreThreadData {
  readonly fd: number
  readonly path: string
  readonly ring: StoreRing
  /** For the error that ends it. */
  readonly port: MessagePort
}

const { fd, path, ring, port } = workerData as StoreThreadData
const { cells } = ring

function doJobs(): void {
  for (let job = 0; ; job++) {
    while (Atomics.load(cells, STORE_CELL.queued) === job) Atomics.wait(cells, STORE_CELL.queued, job)
    if (Atomics.load(cells, STORE_CELL.end) === 1) return
    doJob(ring, job, fd, path)
  }
}

try {
  doJobs()
} catch (error) {
  port.postMessage(errorToMessage(error))
  Atomics.store(cells, STORE_CELL.failed, 1)
  // Whoever waits, for whichever job, waits no more.
  Atomics.store(cells, STORE_CELL.done, 2 ** 31 - 1)
  Atomics.notify(cells, STORE_CELL.done)
}
