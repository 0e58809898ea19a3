// How much memory is in use, rather than kept for later: what is measured is a leak when it grows.
//
// Resident memory alone says little. V8 collects when it likes, and what it gave back to malloc stays resident: every case
// makes and drops buffers, so malloc's free lists fill until they have seen the worst mixture of sizes. Over a million
// cases that looks like half a kilobyte a case; the bytes in use meanwhile stay the same.

import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { koffi } from '../../src/os/libc.js'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void
const trim = bindTrim()

/** Gives free memory of malloc back to the kernel. Only glibc has it. */
function bindTrim(): () => void {
  try {
    const call = koffi().load(null).func('malloc_trim', 'int', ['size_t'])
    return () => void call(0)
  } catch {
    return () => {}
  }
}

/** Bytes resident after everything that nobody uses has been given back. */
export async function settledRssBytes(): Promise<number> {
  for (let round = 0; round < 2; round++) {
    collect()
    await new Promise((resolve) => setImmediate(resolve)) // finalizers
  }
  trim()
  return process.memoryUsage.rss()
}
