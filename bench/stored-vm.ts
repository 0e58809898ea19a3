// A VM that is there twice: in a QEMU that stands still, and in an image that was parked from it. One for all rounds of a
// benchmark, so that every variant begins with the same.

import { linkSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { park } from '../src/index.js'
import type { Qemu } from '../src/qemu/launch.js'
import { setMigrationCapabilities } from '../src/qemu/migration.js'
import { UNLIMITED } from '../src/qemu/save.js'
import type { QemuBinary } from '../test/qemu/find.js'
import { startTestGuest, type TestGuestOptions } from '../test/qemu/guests.js'
import { readIntoCache } from './process-facts.js'
import { RUN_MS_MAX } from './programs.js'
import { type Beat, lastBeat } from './workloads.js'

export interface StoredVm {
  readonly binary: QemuBinary
  /** As it was started: a destination has the same. */
  readonly options: TestGuestOptions
  readonly directory: string
  readonly image: string
  /** The same under another name, for runs that begin with what earlier ones have recorded. The first turn, which does not count, records. */
  readonly recorded: string
  /** How far the guest was when it was parked. */
  readonly parkedAt: Beat
  /** How far the guest in `qemu` is: a hair further after each time that it was saved. */
  beat(): Beat
  readonly qemu: Qemu
}

/** Beats until it is parked: it does then what it will go on doing. */
const PARKED_AT_BEAT = 25

export async function storeVm(binary: QemuBinary, options: TestGuestOptions): Promise<StoredVm> {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-bench-vm-'))
  const image = join(directory, 'vm.img')
  const qmp = join(directory, 'qmp')
  const args = ['-qmp', `unix:${qmp},server=on,wait=off`]
  const qemu = await startTestGuest(binary, { ...options, args, capabilities: ['events'] })
  await qemu.waitForOutput(new RegExp(`beat ${PARKED_AT_BEAT} \\d+\\r?\\n`), { timeoutMs: RUN_MS_MAX })
  await qemu.qmp.execute('stop')
  const beat = (): Beat => lastBeat(qemu.output())!
  const parkedAt = beat()
  await park({ qmp, path: image })
  readIntoCache(image) // parking goes past it
  const recorded = join(directory, 'recorded.img')
  linkSync(image, recorded)
  linkSync(`${image}.json`, `${recorded}.json`)
  await wakeUp(qemu)
  return { binary, options, directory, image, recorded, parkedAt, beat, qemu }
}

/** It can be saved to a file, which gives no answer, and as fast as it can. */
export async function prepareToSave({ qmp }: Qemu): Promise<void> {
  await setMigrationCapabilities(qmp, { 'return-path': false })
  await qmp.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED })
}

/** It has been saved, and can be saved again; its guest stands still. */
export async function wakeUp(qemu: Qemu): Promise<void> {
  await qemu.qmp.execute('cont')
  await qemu.qmp.execute('stop')
}

export async function forgetVm({ qemu, directory }: StoredVm): Promise<void> {
  await qemu.kill()
  rmSync(directory, { recursive: true, force: true })
}

/** Made when it is first wanted. */
export function lazily<T>(make: () => Promise<T>, end: (made: T) => Promise<void>) {
  let made: Promise<T> | undefined
  return {
    get: (): Promise<T> => {
      made ??= make()
      return made
    },
    async end(): Promise<void> {
      if (made !== undefined) await end(await made)
      made = undefined
    },
  }
}
