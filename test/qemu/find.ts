// Which QEMUs and guest files `scripts/setup-qemu.mjs` has left on this machine, and why a test is skipped without them.

import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The repository: this file runs from dist/test/qemu. */
const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..')
const CACHE = join(ROOT, '.cache')

export const LINUX_GUEST = {
  kernel: join(CACHE, 'guest', 'vmlinuz'),
  initrd: join(CACHE, 'guest', 'initrd.gz'),
}

/** Include directory of a newer kernel's headers, for the ABI test. */
export const KERNEL_HEADERS = join(CACHE, 'headers', 'usr', 'include')

export interface QemuBinary {
  /** Major and minor, as `7.2`: names the test and chooses expectations. */
  readonly version: string
  readonly path: string
}

const CANDIDATES = ['/usr/bin/qemu-system-x86_64', join(CACHE, 'bin', 'qemu-10.0')]

let found: readonly QemuBinary[] | undefined

/** Every QEMU on this machine, oldest first: 7.2 and 10.0 after the set-up, possibly none. */
export function findQemus(): readonly QemuBinary[] {
  found ??= CANDIDATES.flatMap((path) => {
    const version = versionOf(path)
    return version === undefined ? [] : [{ version, path }]
  })
  return found
}

/** One version, or undefined when it is absent. */
export function findQemu(version: string): QemuBinary | undefined {
  return findQemus().find((qemu) => qemu.version === version)
}

export interface Requirements {
  /** Versions that must be there; by default any one will do. */
  readonly qemus?: readonly string[]
  readonly linuxGuest?: boolean
}

/**
 * For the `skip` option of `node:test`: false, or the reason. With CI set a skipped test is a failure
 * (see scripts/test.mjs), so that an absent QEMU cannot go unnoticed there.
 */
export function skipReason({ qemus, linuxGuest = false }: Requirements = {}): string | false {
  const how = 'run node scripts/setup-qemu.mjs'
  if (findQemus().length === 0) return `no QEMU on this machine; ${how}`
  const absent = (qemus ?? []).filter((version) => findQemu(version) === undefined)
  if (absent.length > 0) return `QEMU ${absent.join(' and ')} is not on this machine; ${how}`
  if (linuxGuest && !Object.values(LINUX_GUEST).every(existsSync))
    return `no Linux guest in .cache/guest; ${how}`
  return false
}

function versionOf(path: string): string | undefined {
  if (!existsSync(path)) return undefined
  try {
    const said = execFileSync(path, ['--version'], { encoding: 'utf8', timeout: 30_000 })
    return /version (\d+\.\d+)/.exec(said)?.[1]
  } catch {
    return undefined
  }
}
