// Ends the process at once, without joining its threads. Main thread.

import { libc } from './libc.js'

/**
 * For the end of a program, after everything has been said: `process.exit` joins all threads, and one that the compiler's
 * background tasks hold up (see thread.ts) would keep the process for ever.
 */
export function leaveProcess(status: number): never {
  libc()._exit(status)
  throw new Error('unreachable')
}
