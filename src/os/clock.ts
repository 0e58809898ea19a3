// Clocks for latencies and time stamps. Any thread. clock_gettime(2) into a structure that is made once:
// no allocation and no BigInt, and the monotonic clock is the same for all threads and processes of the host.

import { libc } from './libc.js'
import { LINUX, TIMESPEC } from './linux-abi.js'
import { getU64, type NativeBuffer, nativeBuffer } from './memory.js'

let timespec: NativeBuffer | undefined

function readUs(clock: number): number {
  timespec ??= nativeBuffer(TIMESPEC.size)
  libc().clock_gettime(clock, timespec.address)
  const words = timespec.words
  return getU64(words, TIMESPEC.word.tv_sec) * 1e6 + words[TIMESPEC.word.tv_nsec]! / 1e3
}

/** Microseconds since the host's boot, with a fraction; does not jump. */
export function monotonicUs(): number {
  return readUs(LINUX.CLOCK_MONOTONIC)
}

/** Microseconds since 1970 (UTC), with a fraction of about 0.25: for comparing hosts. */
export function realtimeUs(): number {
  return readUs(LINUX.CLOCK_REALTIME)
}
