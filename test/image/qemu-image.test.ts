// Images and real QEMUs: QEMU 10.0 loads what we write, and we read what it writes; streams of both versions are converted.

import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildRom, romRange } from '../../src/guest/rom.js'
import { convertStream } from '../../src/image/convert.js'
import { openImage } from '../../src/image/image.js'
import { inspectFile } from '../../src/image/inspect.js'
import type { Qemu } from '../../src/qemu/launch.js'
import { setMigrationCapabilities, waitForMigration } from '../../src/qemu/migration.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { beats, pmemHash, pmemsave, startTestGuest, type TestGuestOptions } from '../qemu/guests.js'
import { MiB, ramOf, save, temporaryDirectory } from './images.js'

const RAM_MIB = 16
const ROM: TestGuestOptions = {
  guest: buildRom(romRange(RAM_MIB * MiB, 1 * MiB, 5 * MiB)),
  ramMiB: RAM_MIB,
}
const LETTERS = 'abcdefghijklmnopqrstuvwxyz'
const TIMEOUT_MS = 180_000

async function startRom(version: string, machine = 'pc-i440fx-7.2'): Promise<Qemu> {
  const source = await startTestGuest(findQemu(version)!, { ...ROM, machine })
  await source.waitForOutput(/abc/)
  return source
}

async function loadImage(path: string, options: TestGuestOptions): Promise<Qemu> {
  const destination = await startTestGuest(findQemu('10.0')!, {
    ...options,
    incoming: true,
    paused: true,
    capabilities: ['events', 'mapped-ram'],
  })
  await destination.qmp.execute('migrate-incoming', { uri: `file:${path}` })
  await waitForMigration(destination.qmp, ['completed'])
  return destination
}

/** A running guest, saved in passes until a page has gone out as a delta to what it was in the pass before. */
async function saveInPasses(source: Qemu, uri: string): Promise<void> {
  await setMigrationCapabilities(source.qmp, { 'postcopy-ram': false, xbzrle: true })
  const set = (parameters: object) => source.qmp.execute('migrate-set-parameters', { ...parameters })
  // What the guest writes in a pass takes longer than the downtime, so there is a next pass.
  await set({ 'max-bandwidth': 8 * MiB, 'downtime-limit': 20 })
  await source.qmp.execute('migrate', { uri })
  for (let deltas = 0; deltas === 0; await sleep(5)) {
    const info = await source.qmp.execute<{ status: string; 'xbzrle-cache'?: { pages: number } }>(
      'query-migrate',
    )
    assert.notEqual(info.status, 'completed', 'saved before a page was sent twice')
    deltas = info['xbzrle-cache']?.pages ?? 0
  }
  await set({ 'downtime-limit': 2000 })
  await waitForMigration(source.qmp, ['completed'])
}

const LOADED_BY_QEMU = [
  ['7.2', 'pc-i440fx-7.2'],
  ['7.2', 'pc-q35-7.2'],
  ['10.0', 'pc-i440fx-7.2'],
  ['10.0', 'pc-q35-10.0'],
  ['10.0', 'microvm'],
] as const

for (const [version, machine] of LOADED_BY_QEMU) {
  const options = { skip: skipReason({ qemus: [version, '10.0'] }), timeout: TIMEOUT_MS }
  const what = `a stream of QEMU ${version} (${machine})`

  test(`${what} becomes an image that QEMU 10.0 loads`, options, async (t) => {
    const directory = temporaryDirectory(t)
    const saved = join(directory, 'saved')
    const path = join(directory, 'vm.img')
    const source = await startRom(version, machine)
    t.after(source.kill)
    await source.qmp.execute('stop')
    await save(source, `exec:cat > ${saved}`)
    const ram = await pmemsave(source, 1 * MiB, (RAM_MIB - 1) * MiB)
    const written = await convertStream(saved, path)
    assert.equal(written.diskBytes < written.fileBytes / 4, true, 'zero pages are holes')

    const image = openImage(path, { requireSidecar: true })
    t.after(image.close)
    for (const _ of image.verify());
    assert.equal(image.machine, machine)
    assert.deepEqual(ramOf(image, image.blocks[0]!.name).subarray(1 * MiB), ram)

    const destination = await loadImage(path, { ...ROM, machine })
    t.after(destination.kill)
    assert.deepEqual(await pmemsave(destination, 1 * MiB, (RAM_MIB - 1) * MiB), ram)
    await destination.qmp.execute('cont')
    const next = LETTERS[(LETTERS.indexOf(source.output().at(-1)!) + 1) % LETTERS.length]
    const [first] = await destination.waitForOutput(/./)
    assert.equal(first[0], next)
  })
}

for (const version of ['7.2', '10.0']) {
  const options = { skip: skipReason({ qemus: [version] }), timeout: TIMEOUT_MS }

  test(`XBZRLE deltas of QEMU ${version} are applied`, options, async (t) => {
    const directory = temporaryDirectory(t)
    const saved = join(directory, 'saved')
    const path = join(directory, 'vm.img')
    const source = await startRom(version)
    t.after(source.kill)
    await saveInPasses(source, `exec:cat > ${saved}`)
    const { blocks } = inspectFile(saved)
    assert.ok(blocks[0]!.records!.xbzrle > 0, `no deltas: ${JSON.stringify(blocks[0]!.records)}`)
    await convertStream(saved, path)
    const image = openImage(path)
    t.after(image.close)
    for (const _ of image.verify());
    const ram = await pmemsave(source, 1 * MiB, (RAM_MIB - 1) * MiB)
    assert.deepEqual(ramOf(image, 'pc.ram').subarray(1 * MiB), ram)
  })
}

test('compressed pages of QEMU 7.2 are inflated', {
  skip: skipReason({ qemus: ['7.2'] }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const directory = temporaryDirectory(t)
  const saved = join(directory, 'saved')
  const path = join(directory, 'vm.img')
  const source = await startRom('7.2')
  t.after(source.kill)
  await source.qmp.execute('stop')
  await save(source, `exec:cat > ${saved}`, ['compress'])
  assert.ok(inspectFile(saved).blocks[0]!.records!.compressed > 0)
  await convertStream(saved, path)
  const image = openImage(path)
  t.after(image.close)
  const ram = await pmemsave(source, 1 * MiB, (RAM_MIB - 1) * MiB)
  assert.deepEqual(ramOf(image, 'pc.ram').subarray(1 * MiB), ram)
})

const ten = { skip: skipReason({ qemus: ['10.0'] }), timeout: TIMEOUT_MS }

const WRITTEN_BY_QEMU: readonly { machine: string; offset: number; capabilities: readonly string[] }[] = [
  { machine: 'pc-i440fx-7.2', offset: 0x20_0000, capabilities: ['mapped-ram'] },
  { machine: 'pc-q35-10.0', offset: 0, capabilities: ['mapped-ram', 'multifd'] },
  { machine: 'microvm', offset: 0, capabilities: ['mapped-ram'] },
]

for (const { machine, offset, capabilities } of WRITTEN_BY_QEMU) {
  const how = `${machine}, ${capabilities.join(' and ')}, offset ${offset}`
  test(`an image that QEMU 10.0 wrote opens without a sidecar: ${how}`, ten, async (t) => {
    const path = join(temporaryDirectory(t), 'vm.img')
    const source = await startTestGuest(findQemu('10.0')!, { ...ROM, machine })
    t.after(source.kill)
    await source.waitForOutput(/abc/)
    await save(source, `file:${path},offset=${offset}`, capabilities)
    const ram = await pmemsave(source, 1 * MiB, (RAM_MIB - 1) * MiB)
    const image = openImage(path, { offset })
    t.after(image.close)
    assert.equal(image.machine, machine)
    assert.equal(image.sidecar, undefined)
    const name = image.blocks[0]!.name
    assert.match(name, /^(pc|microvm)\.ram$/)
    assert.deepEqual(ramOf(image, name).subarray(1 * MiB), ram)
    assert.ok(image.sections.some(({ idstr }) => idstr === 'serial'))
    assert.throws(() => openImage(path, { offset, requireSidecar: true }), /sidecar is missing/)
    if (offset > 0) assert.throws(() => openImage(path), { code: 'IMAGE', offset: 0 })
  })
}

test('Linux goes on from an image in QEMU 10.0', {
  skip: skipReason({ qemus: ['10.0'], linuxGuest: true }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const directory = temporaryDirectory(t)
  const saved = join(directory, 'saved')
  const path = join(directory, 'vm.img')
  const linux: TestGuestOptions = { guest: 'linux', ramMiB: 128 }
  const source = await startTestGuest(findQemu('10.0')!, linux)
  t.after(source.kill)
  await source.waitForOutput(/beat 3\r?\n/, { timeoutMs: 30_000 })
  await save(source, `file:${saved}`)
  await convertStream(saved, path)
  const ramHash = await pmemHash(source, 1 * MiB, 127 * MiB)
  const last = beats(source).at(-1)!
  const destination = await loadImage(path, linux)
  t.after(destination.kill)
  assert.equal(await pmemHash(destination, 1 * MiB, 127 * MiB), ramHash)
  await destination.qmp.execute('cont')
  await destination.waitForOutput(new RegExp(`beat ${last + 3}\\r?\\n`), { timeoutMs: 20_000 })
  assert.equal(beats(destination)[0], last + 1)
  assert.ok(statSync(path).blocks * 512 < 160 * MiB)
})
