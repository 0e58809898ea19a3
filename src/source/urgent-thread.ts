// The thread of a QEMU on this machine that takes requested pages, where they have a connection of their own: it goes before all
// others on the processors. Main thread.
//
// What a page takes that somebody waits for is, where all processors are busy, mostly the time until this thread runs. The kernel
// wakes it on the processor where the pages are taken that nobody waits for, or where we send, and lets those go on for
// milliseconds first: all of them are at work, and it is but one more.

import { setTimeout as sleep } from 'node:timers/promises'
import { runFirst, threadNamed } from '../os/scheduling.js'

/** As QEMU calls it, where it names its threads (`-name debug-threads=on`): 10.0, and 7.2. */
const NAMES = ['mig/dst/preempt', 'fault-fast']
/** It begins when QEMU has got as far as LISTEN in what it was sent; then, ms from one look to the next. */
const LOOK_MS = [1, 2, 4, 8, 16]

/** @returns whether it does; not where its threads have no names, or we may not. */
export async function hastenUrgentThread(process: number): Promise<boolean> {
  for (const ms of LOOK_MS) {
    await sleep(ms, undefined, { ref: false })
    const thread = threadNamed(process, NAMES)
    if (thread !== undefined) return runFirst(thread)
  }
  return false
}
