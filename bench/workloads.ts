// Linux guests that work in a way that is told apart from others (c/workload.c), for benchmarks with a real QEMU.

import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { LINUX_GUEST } from '../test/qemu/find.js'
import type { TestGuestOptions } from '../test/qemu/guests.js'
import { cGuestProgram, ownDirectory } from './programs.js'

/** What the guest does, and in how many MiB. */
export const WORKLOADS = {
  /** Says its beat each 20 ms. */
  idle: 0,
  /** `md5sum` of a file in RAM, again and again. */
  md5: 8,
  /** Reads a word of a random page, again and again. */
  reader: 128,
  /** A key-value store: a hash table in memory, nine reads to one write, most of them in a fifth of the keys. */
  kv: 128,
} as const satisfies Record<string, number>

export type Workload = keyof typeof WORKLOADS

/** MiB that Linux has for itself, the initrd and what its programs need; all other RAM holds something. */
const LINUX_MIB = 112
/** And what it keeps for devices that reach no further than 4 GiB, where some of its RAM is behind that. */
const BOUNCE_MIB = 96
const BOUNCE_FROM_MIB = 3072

/** @param filled RAM that the program does not work in is written once, so that nearly no page is zero. */
export function workloadOptions(work: Workload, ramMiB: number, filled = true): TestGuestOptions {
  const mib = WORKLOADS[work]
  const own = LINUX_MIB + Math.ceil(ramMiB / 32) + (ramMiB < BOUNCE_FROM_MIB ? 0 : BOUNCE_MIB)
  const fill = filled ? Math.max(0, ramMiB - own - mib) : 0
  return {
    guest: 'linux',
    ramMiB,
    initrd: initrdPath(),
    append: `work=${work} mib=${mib} fill=${fill}`,
  }
}

/** The test guest's initrd, and behind it an archive with another init: what comes later counts. */
function initrdPath(): string {
  const path = join(ownDirectory(), 'initrd.gz')
  const root = join(ownDirectory(), 'initrd')
  if (mkdirSync(root, { recursive: true }) === undefined) return path
  copyFileSync(cGuestProgram('workload'), join(root, 'init'))
  const archive = execFileSync('busybox', ['cpio', '-o', '-H', 'newc'], { cwd: root, input: 'init\n' })
  writeFileSync(path, Buffer.concat([readFileSync(LINUX_GUEST.initrd), gzipSync(archive)]))
  return path
}

export interface Beat {
  readonly beat: number
  /** Done so far. */
  readonly operations: number
}

/** One that is complete. */
export const BEAT = /beat (\d+) (\d+)\r?\n/

/** The last one that is complete in what the guest has said. */
export function lastBeat(output: string): Beat | undefined {
  const last = [...output.matchAll(new RegExp(BEAT, 'g'))].at(-1)
  return last === undefined ? undefined : { beat: Number(last[1]), operations: Number(last[2]) }
}
