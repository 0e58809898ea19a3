// The writeback thread: tells the kernel again and again to begin with writing the image to disk, so that the fsync at its end
// has little left to do. It has no other work, and blocks in that while the disk's queue is full, and in waiting for pages.
//
// It has a descriptor of its own, as nobody waits for it: the image may be closed while it is still at it.

import { closeSync, openSync } from 'node:fs'
import { workerData } from 'node:worker_threads'
import { startWriteback } from '../os/mapping.js'
import { SLOT_PAGES, STORE_CELL } from './store.js'

interface WritebackThreadData {
  readonly path: string
  readonly cells: Int32Array
}

/** Written between two turns, pages: less costs the disk a request for little. */
const TURN_PAGES = 4096
const TURN_JOBS = TURN_PAGES / SLOT_PAGES

const { path, cells } = workerData as WritebackThreadData

function run(fd: number): void {
  for (let turn = 0; ; ) {
    const done = Atomics.load(cells, STORE_CELL.done)
    if (Atomics.load(cells, STORE_CELL.end) === 1 || Atomics.load(cells, STORE_CELL.failed) === 1) return
    if (done - turn < TURN_JOBS) {
      Atomics.wait(cells, STORE_CELL.done, done)
      continue
    }
    startWriteback(fd, 0, 0)
    turn = done
  }
}

let fd = -1
try {
  fd = openSync(path, 'r+')
  run(fd)
} catch {
  // The file is gone already, or cannot be written early: then fsync does it all.
} finally {
  if (fd >= 0) closeSync(fd)
}
