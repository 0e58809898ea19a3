// What the kernel knows of a process and of a file: processor time, memory, page cache.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

/** Of /proc/PID/stat; `sysconf(_SC_CLK_TCK)` is 100 on every Linux that is measured here. */
const TICK_MS = 10
const UTIME = 11

/** Of all its threads, those that have ended too; user and system, ms, in steps of 10. */
export function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[UTIME]) + Number(fields[UTIME + 1])) * TICK_MS
}

export interface MemoryUse {
  /** Shared pages are divided among those who share them. */
  readonly pssMiB: number
  /** Nobody else's, and not the page cache's. */
  readonly privateDirtyMiB: number
}

export function memoryOf(pid: number): MemoryUse {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')
  const mebibytes = (name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(rollup)?.[1] ?? Number.NaN) / 1024
  return { pssMiB: mebibytes('Pss'), privateDirtyMiB: mebibytes('Private_Dirty') }
}

/** MiB of a file that are in the page cache. */
export function cachedMiB(path: string): number {
  const bytes = execFileSync('fincore', ['--bytes', '--noheadings', '--output', 'RES', path], {
    encoding: 'utf8',
  })
  return Number(bytes) / 2 ** 20
}

/** Out of the page cache with it: first to disk, then `posix_fadvise(POSIX_FADV_DONTNEED)`, which is what `nocache` does. */
export function dropFromCache(path: string): void {
  const quiet = { stdio: 'ignore' } as const
  execFileSync('sync', [path], quiet)
  execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0'], quiet)
}

/** All of it into the page cache. */
export function readIntoCache(path: string): void {
  execFileSync('dd', [`if=${path}`, 'of=/dev/null', 'bs=1M'], { stdio: 'ignore' })
}
