// Starts a worker thread of ours. Main thread.

import { type TransferListItem, Worker } from 'node:worker_threads'

/** @param name for debuggers and process listings. */
export function startThread(
  url: URL,
  name: string,
  workerData: unknown,
  transferList: readonly TransferListItem[] = [],
): Worker {
  // A program from standard input or --eval has this option, and workers, which are files, refuse it.
  const execArgv = process.execArgv.filter((option) => !option.startsWith('--input-type'))
  return new Worker(url, { workerData, transferList: [...transferList], name, execArgv })
}
