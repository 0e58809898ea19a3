// Clocks for latencies and time stamps. Any thread. No BigInt, and next to no garbage.

import { libc } from './libc.js'
import { LINUX, TIMESPEC } from './linux-abi.js'
import { getU64, type NativeBuffer, nativeBuffer } from './memory.js'

// Looked up once: a global is an accessor, and these are read several times for each page that a guest waits for.
const { performance } = globalThis
let timespec: NativeBuffer | undefined
/** What CLOCK_MONOTONIC is ahead of this thread's `performance.now()`, which is the same clock, µs. */
let offsetUs: number | undefined

function readUs(clock: number): number {
  timespec ??= nativeBuffer(TIMESPEC.size)
  libc().clock_gettime(clock, timespec.address)
  const words = timespec.words
  return getU64(words, TIMESPEC.word.tv_sec) * 1e6 + words[TIMESPEC.word.tv_nsec]! / 1e3
}

/** Microseconds since the host's boot, with a fraction; does not jump. The same for all threads and processes of the host. */
export function monotonicUs(): number {
  offsetUs ??= readUs(LINUX.CLOCK_MONOTONIC) - performance.now() * 1e3
  return performance.now() * 1e3 + offsetUs
}

/** The same in milliseconds. */
export const monotonicMs = (): number => monotonicUs() / 1e3

/** Microseconds since 1970 (UTC), with a fraction of about 0.25: for comparing hosts. */
export function realtimeUs(): number {
  return readUs(LINUX.CLOCK_REALTIME)
}
