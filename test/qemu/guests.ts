// Guests for tests with a real QEMU: a ROM that fills RAM, and a Linux that prints "beat N". Always TCG: it is the same
// on every machine, and under nested virtualisation KVM is not to be relied on.

import { createHash } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { buildRom, ROM_BYTES, romRange } from '../../src/guest/rom.js'
import { launchQemu, type Qemu } from '../../src/qemu/launch.js'
import { setMigrationCapabilities } from '../../src/qemu/migration.js'
import { LINUX_GUEST, type QemuBinary } from './find.js'

export interface TestGuestOptions {
  /**
   * `idle` (default): a ROM that jumps to itself and touches no RAM. `rom`: the ROM guest, over all RAM that it can
   * count. `linux`: prints "beat N" each 200 ms. Bytes: a ROM image of 64 KiB.
   */
  readonly guest?: 'idle' | 'rom' | 'linux' | Uint8Array
  /** Another initrd for Linux, and more words for its command line. */
  readonly initrd?: string
  readonly append?: string
  /** Guest RAM, MiB; default 16, for Linux 256. */
  readonly ramMiB?: number
  /** Default `pc-i440fx-7.2`: both versions have it, so that a guest can go from one to the other. */
  readonly machine?: string
  /** Started with `-incoming defer`: give the address with `migrate-incoming`. */
  readonly incoming?: boolean
  /** Started with `-S`: the guest does not run until `cont`, not even after an incoming migration. */
  readonly paused?: boolean
  /** Migration capabilities to switch on; default `events` and `postcopy-ram`. */
  readonly capabilities?: readonly string[]
  readonly args?: readonly string[]
}

const MiB = 1024 * 1024

/** A ROM whose first instruction, at the reset vector, is a jump to itself. */
export function idleRom(): Uint8Array {
  const rom = new Uint8Array(ROM_BYTES)
  rom.set([0xeb, 0xfe], ROM_BYTES - 16)
  return rom
}

/** Start a guest; its serial port is `output()`. The caller must `quit` or `kill` it. */
export async function startTestGuest(qemu: QemuBinary, options: TestGuestOptions = {}): Promise<Qemu> {
  const { capabilities = ['events', 'postcopy-ram'] } = options
  const started = await launchQemu({
    path: qemu.path,
    timeoutMs: 20_000,
    args: (directory) => testGuestArgs(directory, options),
  })
  try {
    await setMigrationCapabilities(
      started.qmp,
      Object.fromEntries(capabilities.map((capability) => [capability, true])),
    )
  } catch (error) {
    await started.kill()
    throw error
  }
  return started
}

/** All but the program and its QMP socket. `directory`: for files that last as long as the guest. */
export function testGuestArgs(directory: string, options: TestGuestOptions): string[] {
  const { guest = 'idle', machine = 'pc-i440fx-7.2', incoming = false, paused = false, args = [] } = options
  const { ramMiB = guest === 'linux' ? 256 : 16 } = options
  return [
    ...['-accel', 'tcg', '-machine', machine, '-m', `${ramMiB}M`],
    ...['-nodefaults', '-display', 'none', '-serial', 'stdio'],
    ...(guest === 'linux' ? linuxArgs(options) : romArgs(directory, romImage(guest, ramMiB))),
    ...(incoming ? ['-incoming', 'defer'] : []),
    ...(paused ? ['-S'] : []),
    ...args,
  ]
}

function linuxArgs({ initrd = LINUX_GUEST.initrd, append = '' }: TestGuestOptions): string[] {
  const words = `console=ttyS0 quiet panic=1 ${append}`.trimEnd()
  return ['-kernel', LINUX_GUEST.kernel, '-initrd', initrd, '-append', words]
}

function romImage(guest: 'idle' | 'rom' | Uint8Array, ramMiB: number): Uint8Array {
  if (guest === 'idle') return idleRom()
  return guest === 'rom' ? buildRom(romRange(ramMiB * MiB)) : guest
}

function romArgs(directory: string, rom: Uint8Array): string[] {
  const file = join(directory, 'rom.bin')
  writeFileSync(file, rom)
  return ['-bios', file]
}

/** Guest-physical memory of a paused QEMU. Reading RAM that has not arrived stalls QEMU: only after completion. */
export async function pmemsave(qemu: Qemu, start: number, length: number): Promise<Buffer> {
  const file = join(qemu.directory, 'pmem')
  await qemu.qmp.execute('pmemsave', { val: start, size: length, filename: file }, { timeoutMs: 60_000 })
  const bytes = readFileSync(file)
  rmSync(file)
  return bytes
}

/** SHA-256 of guest-physical memory, hexadecimal. */
export async function pmemHash(qemu: Qemu, start: number, length: number): Promise<string> {
  return createHash('sha256')
    .update(await pmemsave(qemu, start, length))
    .digest('hex')
}

/** Numbers of the beats that a Linux guest has printed so far, in order. */
export function beats(qemu: Pick<Qemu, 'output'>): number[] {
  return [...qemu.output().matchAll(/beat (\d+)\r?\n/g)].map((match) => Number(match[1]))
}
