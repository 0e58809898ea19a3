// VMs to be parked: a QEMU with a second QMP socket for the park command, and what must be true of the image. For tests.

import assert from 'node:assert/strict'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { openImage } from '../../src/image/image.js'
import type { Qemu } from '../../src/qemu/launch.js'
import { waitForMigration } from '../../src/qemu/migration.js'
import { temporaryDirectory } from '../image/images.js'
import { findQemu } from '../qemu/find.js'
import { startTestGuest, type TestGuestOptions } from '../qemu/guests.js'

export interface Vm {
  readonly qemu: Qemu
  /** QMP socket that nobody uses yet: QEMU talks to one client a socket. */
  readonly qmp: string
  /** Where its image may go; there is none. */
  readonly image: string
  readonly directory: string
}

export async function startVm(t: TestContext, version: string, options: TestGuestOptions): Promise<Vm> {
  const directory = temporaryDirectory(t)
  const qmp = join(directory, 'qmp')
  const args = [...(options.args ?? []), '-qmp', `unix:${qmp},server=on,wait=off`]
  const qemu = await startTestGuest(findQemu(version)!, { capabilities: ['events'], ...options, args })
  t.after(qemu.kill)
  return { qemu, qmp, image: join(directory, 'vm.img'), directory }
}

/** The image in a QEMU 10.0 of the same machine, paused; it has loaded all of it. */
export async function load(t: TestContext, image: string, options: TestGuestOptions): Promise<Qemu> {
  const qemu = await startTestGuest(findQemu('10.0')!, {
    ...options,
    incoming: true,
    paused: true,
    capabilities: ['events', 'mapped-ram'],
  })
  t.after(qemu.kill)
  await qemu.qmp.execute('migrate-incoming', { uri: `file:${image}` })
  await waitForMigration(qemu.qmp, ['completed'])
  return qemu
}

/** Every checksum is right, and it takes no more room than the pages that are not zero, and its metadata. */
export function assertSound(path: string): void {
  const image = openImage(path, { requireSidecar: true })
  for (const _ of image.verify());
  const present = image.blocks.reduce((sum, block) => sum + block.present.count(), 0)
  const metadata = 1024 * 1024 + image.blocks.length * 64 * 1024
  image.close()
  assert.ok(statSync(path).blocks * 512 <= present * 4096 + metadata, 'larger than its pages')
}

export function assertNoImage({ image }: Vm): void {
  assert.equal(existsSync(image), false, 'there is an image')
  assert.equal(existsSync(`${image}.json`), false, 'there is a sidecar')
}

/** Files that begin with a dot: images that were being written. */
export const remnants = ({ image }: Vm): string[] =>
  readdirSync(dirname(image)).filter((name) => name.startsWith('.'))

/** Its guest runs, and its console says more than it did. */
export async function assertGoesOn({ qemu }: Vm): Promise<void> {
  const endMs = performance.now() + 5000
  const state = async () => (await qemu.qmp.execute<{ status: string }>('query-status')).status
  while ((await state()) !== 'running' && performance.now() < endMs) await sleep(20)
  assert.equal(await state(), 'running')
  const before = qemu.output().length
  while (qemu.output().length === before && performance.now() < endMs) await sleep(20)
  assert.ok(qemu.output().length > before, 'the guest makes no progress')
}

/** Capabilities that are on, and parameters. */
export async function settings({ qemu }: Vm): Promise<unknown> {
  return [
    await qemu.qmp.execute('query-migrate-capabilities'),
    await qemu.qmp.execute('query-migrate-parameters'),
  ]
}
