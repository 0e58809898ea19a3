// When threads run: our own, and those of other processes. Any thread; nothing here waits.

import { readdirSync, readFileSync } from 'node:fs'
import { libc } from './libc.js'
import { LINUX } from './linux-abi.js'
import { nativeBuffer } from './memory.js'

const { SCHED_FIFO, SCHED_RESET_ON_FORK } = LINUX
/** Before every thread that has no such priority, and behind all others that have one: 1 to 99, sched(7). */
const LOWEST_PRIORITY = 1

/** The first thread of the process that has one of these names; undefined when none has, or the process is gone. */
export function threadNamed(process: number, names: readonly string[]): number | undefined {
  const tasks = `/proc/${process}/task`
  try {
    for (const thread of readdirSync(tasks)) {
      if (names.includes(readFileSync(`${tasks}/${thread}/comm`, 'latin1').trimEnd())) return Number(thread)
    }
  } catch {
    // It has ended meanwhile.
  }
  return undefined
}

/**
 * From now on it runs as soon as it can, whatever else wants to: sched(7), SCHED_FIFO. What it starts does not. False where that is
 * not allowed (CAP_SYS_NICE, or RLIMIT_RTPRIO of whose thread it is). For threads that sleep most of the time.
 * @param thread 0: the one that calls
 */
export function runFirst(thread: number): boolean {
  const parameter = nativeBuffer(8) // struct sched_param
  parameter.words[0] = LOWEST_PRIORITY
  return libc().sched_setscheduler(thread, SCHED_FIFO | SCHED_RESET_ON_FORK, parameter.address) === 0
}
