// Starts a worker thread of ours. Main thread.

import { type TransferListItem, Worker } from 'node:worker_threads'

/** @param name for debuggers and process listings. */
export function startThread(
  url: URL,
  name: string,
  workerData: unknown,
  transferList: readonly TransferListItem[] = [],
): Worker {
  const options = { workerData, transferList: [...transferList], name }
  // A program from standard input or --eval has this option, and workers, which are files, refuse it.
  const isRefused = (option: string): boolean => option.startsWith('--input-type')
  if (!process.execArgv.some(isRefused)) return new Worker(url, options)
  return new Worker(url, { ...options, execArgv: process.execArgv.filter((option) => !isRefused(option)) })
}
