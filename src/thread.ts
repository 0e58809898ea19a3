// Worker threads of ours: how they are started, followed, and how they say that they are done.
//
// Nobody waits for a thread to be *joined* before something goes on. Node (at least to version 22) makes a thread that
// exits wait for the compiler's background tasks of all threads, and such a task may in turn wait for a thread that is
// stalled, or that is exiting itself. So the last thing a thread does is to say that it has ended: from then on it
// touches nothing that it shares, and what it used can be closed and unmapped.

import { setFlagsFromString } from 'node:v8'
import { parentPort, type TransferListItem, Worker } from 'node:worker_threads'

const ENDED = 'ended'
/**
 * V8 gives the young objects of a new thread 1 MiB at first: starting up then means half a dozen garbage collections of
 * several milliseconds, some of them with a guest standing still. All that our threads need to start fits into this, MiB.
 */
const YOUNG_MIB = 8
let started = 0

/** Threads that this process has started so far. */
export const threadsStarted = (): number => started

/** @param name for debuggers and process listings. Main thread. */
export function startThread(
  url: URL,
  name: string,
  workerData: unknown,
  transferList: readonly TransferListItem[] = [],
): Worker {
  if (started === 0) setFlagsFromString(`--min-semi-space-size=${YOUNG_MIB}`)
  started++
  const options = { workerData, transferList: [...transferList], name }
  // A program from standard input or --eval has this option, and workers, which are files, refuse it.
  const isRefused = (option: string): boolean => option.startsWith('--input-type')
  if (!process.execArgv.some(isRefused)) return new Worker(url, options)
  return new Worker(url, { ...options, execArgv: process.execArgv.filter((option) => !isRefused(option)) })
}

/**
 * Hands over each message of a thread; resolves when it has ended, by its own word or because it is gone.
 * Rejects with what it threw. The thread that started it.
 */
export function followThread<M>(worker: Worker, onMessage: (message: M) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.on('message', (message) => {
      if (message === ENDED) resolve()
      else onMessage(message)
    })
    worker.on('error', reject)
    worker.on('exit', () => resolve())
  })
}

/** The last act of a thread that `followThread` follows. */
export function sayEnded(): void {
  parentPort!.postMessage(ENDED)
}
