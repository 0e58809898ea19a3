// Real QEMUs are parked: what is in the image is what was in the VM, and it goes on from there.

import assert from 'node:assert/strict'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildRom, romRange } from '../../src/guest/rom.js'
import { openImage } from '../../src/image/image.js'
import { inspectFile } from '../../src/image/inspect.js'
import { parkFrom } from '../../src/image/park.js'
import { setMigrationCapabilities, waitForMigration } from '../../src/qemu/migration.js'
import { park } from '../../src/vm/park.js'
import { MiB, ramOf, save } from '../image/images.js'
import { skipReason } from '../qemu/find.js'
import { beats, pmemHash, pmemsave, type TestGuestOptions } from '../qemu/guests.js'
import { assertNoImage, assertSound, load, startVm } from './vms.js'

const RAM_MIB = 32
const ROM: TestGuestOptions = {
  guest: buildRom(romRange(RAM_MIB * MiB, 1 * MiB, 24 * MiB)),
  ramMiB: RAM_MIB,
}
const LINUX: TestGuestOptions = { guest: 'linux', ramMiB: 128 }
const TIMEOUT_MS = 180_000

const rich = (directory: string): string[] => [
  ...['-smp', '2', '-device', 'VGA', '-device', 'virtio-net-pci,netdev=n', '-netdev', 'user,id=n'],
  ...['-drive', `file=${join(directory, 'disk')},format=raw,if=none,id=d`],
  ...['-device', 'virtio-blk-pci,drive=d'],
]

test('Linux in QEMU 7.2 is parked while it runs, and goes on in QEMU 10.0', {
  skip: skipReason({ qemus: ['7.2', '10.0'], linuxGuest: true }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const vm = await startVm(t, '7.2', LINUX)
  await vm.qemu.waitForOutput(/beat 3\r?\n/, { timeoutMs: 40_000 })
  let shown = 0
  const report = await park({ qmp: vm.qmp, path: vm.image, onProgress: () => shown++ })
  assert.equal(report.ok, true)
  assert.ok(shown > 0)
  assert.ok(report.qemu.startsWith('7.2'))
  assert.ok(report.downtimeMs > 0 && report.downtimeMs <= report.durationMs)
  assertSound(vm.image)
  const { status } = await vm.qemu.qmp.execute<{ status: string }>('query-status')
  assert.equal(status, 'postmigrate')
  const last = beats(vm.qemu).at(-1)!
  const again = await load(t, vm.image, LINUX)
  assert.equal(await pmemHash(again, 1 * MiB, 127 * MiB), await pmemHash(vm.qemu, 1 * MiB, 127 * MiB))
  await again.qmp.execute('cont')
  await again.waitForOutput(new RegExp(`beat ${last + 2}\\r?\\n`), { timeoutMs: 20_000 })
  // It may have been stopped in the middle of a line: what was printed there and here is one text.
  const numbers = beats({ output: () => vm.qemu.output() + again.output() })
  assert.deepEqual(
    numbers,
    Array.from(numbers, (_, i) => numbers[0]! + i),
    'no beat lost or repeated',
  )
})

for (const version of ['7.2', '10.0']) {
  const options = { skip: skipReason({ qemus: [version, '10.0'] }), timeout: TIMEOUT_MS }

  test(`a guest in QEMU ${version} that never ceases to write is parked, with deltas`, options, async (t) => {
    const vm = await startVm(t, version, { ...ROM, capabilities: ['events', 'xbzrle'] })
    await vm.qemu.waitForOutput(/abc/)
    const report = await park({ qmp: vm.qmp, path: vm.image, downtimeLimitMs: 1 })
    assertSound(vm.image)
    const image = openImage(vm.image)
    t.after(image.close)
    const ram = await pmemsave(vm.qemu, 1 * MiB, (RAM_MIB - 1) * MiB)
    assert.deepEqual(ramOf(image, 'pc.ram').subarray(1 * MiB), ram)
    assert.equal(report.pages.normal + report.pages.zero, report.memoryBytes / 4096)
  })

  test(`q35 with devices in QEMU ${version} is parked and loaded`, options, async (t) => {
    const guest = { ...ROM, machine: version === '7.2' ? 'pc-q35-7.2' : 'pc-q35-10.0' }
    const disk = join((await startVm(t, version, { ramMiB: 16 })).directory)
    writeFileSync(join(disk, 'disk'), Buffer.alloc(1 * MiB))
    const vm = await startVm(t, version, { ...guest, args: rich(disk) })
    await vm.qemu.waitForOutput(/abc/)
    await park({ qmp: vm.qmp, path: vm.image })
    assertSound(vm.image)
    const { devices, machine } = inspectFile(vm.image)
    assert.equal(machine, guest.machine)
    for (const name of ['virtio-blk', 'virtio-net', 'vga', 'cpu'])
      assert.ok(
        devices.some(({ idstr }) => idstr.includes(name)),
        `no ${name}`,
      )
    assert.equal(devices.filter(({ idstr }) => idstr === 'cpu').length, 2)
    const ram = await pmemHash(vm.qemu, 1 * MiB, (RAM_MIB - 1) * MiB)
    await vm.qemu.kill() // it locks the disk
    const again = await load(t, vm.image, { ...guest, args: rich(disk) })
    assert.equal(await pmemHash(again, 1 * MiB, (RAM_MIB - 1) * MiB), ram)
  })

  test(`microvm in QEMU ${version} is parked`, options, async (t) => {
    const vm = await startVm(t, version, { machine: 'microvm', ramMiB: 32 })
    const { machine } = await park({ qmp: vm.qmp, path: vm.image })
    assert.equal(machine, 'microvm')
    assertSound(vm.image)
    if (version === '10.0') await load(t, vm.image, { machine: 'microvm', ramMiB: 32 })
  })

  test(`QEMU ${version} switches to postcopy while it is parked`, options, async (t) => {
    const vm = await startVm(t, version, { ...ROM, capabilities: ['events', 'postcopy-ram'] })
    await vm.qemu.waitForOutput(/abc/)
    const parking = parkFrom({ listen: `unix:${vm.directory}/park`, path: vm.image })
    t.after(parking.cancel)
    // Slow enough that it is still in its first passes.
    await vm.qemu.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 40 * MiB, 'downtime-limit': 1 })
    await vm.qemu.qmp.execute('migrate', { uri: parking.uri })
    while (parking.stats.bytes < 30 * MiB) await sleep(5)
    await vm.qemu.qmp.execute('migrate-start-postcopy')
    const report = await parking.done
    assert.equal(report.error, undefined)
    assert.equal(report.mode, 'postcopy')
    await waitForMigration(vm.qemu.qmp, ['completed'])
    assertSound(vm.image)
    const ram = await pmemHash(vm.qemu, 1 * MiB, (RAM_MIB - 1) * MiB)
    const again = await load(t, vm.image, ROM)
    assert.equal(await pmemHash(again, 1 * MiB, (RAM_MIB - 1) * MiB), ram)
  })

  test(`QEMU ${version} without a return path, and without a description, is parked`, options, async (t) => {
    for (const [capabilities, machine] of [
      [[], 'pc-i440fx-7.2'],
      [['return-path'], 'pc-i440fx-7.2,suppress-vmdesc=on'],
    ] as const) {
      const vm = await startVm(t, version, { machine, capabilities: ['events', ...capabilities] })
      const parking = parkFrom({ listen: 'tcp:127.0.0.1:0', path: vm.image })
      t.after(parking.cancel)
      await vm.qemu.qmp.execute('migrate', { uri: parking.uri })
      const report = await parking.done
      assert.equal(report.error, undefined)
      assert.equal(report.returnPath, capabilities.length > 0)
      await waitForMigration(vm.qemu.qmp, ['completed'])
      assertSound(vm.image)
      await vm.qemu.quit()
    }
  })

  test(`RAM of memory-backend-memfd in QEMU ${version} is parked`, options, async (t) => {
    const machine = 'pc-i440fx-7.2,memory-backend=m'
    const args = ['-object', `memory-backend-memfd,id=m,size=${RAM_MIB}M,share=on`]
    const vm = await startVm(t, version, { ...ROM, machine, args })
    await vm.qemu.waitForOutput(/abc/)
    await park({ qmp: vm.qmp, path: vm.image })
    const image = openImage(vm.image)
    t.after(image.close)
    const ram = await pmemsave(vm.qemu, 1 * MiB, (RAM_MIB - 1) * MiB)
    assert.deepEqual(ramOf(image, 'm').subarray(1 * MiB), ram)
  })
}

test('QEMU 10.0 writes the image itself, and it gets checksums', {
  skip: skipReason({ qemus: ['10.0'] }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const vm = await startVm(t, '10.0', ROM)
  await vm.qemu.waitForOutput(/abc/)
  const report = await park({ qmp: vm.qmp, path: vm.image, native: true, quit: true })
  assert.equal(report.quit, true)
  assertSound(vm.image)
  assert.equal((await vm.qemu.exited).code, 0)
  assert.equal(inspectFile(vm.image, { verify: true }).sidecar?.made.how, 'park')
  const again = await load(t, vm.image, ROM)
  await again.qmp.execute('cont')
  await again.waitForOutput(/./)
})

test('QEMU 7.2 cannot write images itself, and is not touched', {
  skip: skipReason({ qemus: ['7.2'] }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const vm = await startVm(t, '7.2', {})
  await assert.rejects(park({ qmp: vm.qmp, path: vm.image, native: true }), /QEMU 7\.2 cannot write images/)
  assertNoImage(vm)
})

test('a saved stream becomes an image on the command line, and is inspected', {
  skip: skipReason({ qemus: ['7.2'] }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const { farfault } = await import('../cli/farfault.js')
  const vm = await startVm(t, '7.2', ROM)
  await vm.qemu.waitForOutput(/abc/)
  const saved = join(vm.directory, 'saved')
  await setMigrationCapabilities(vm.qemu.qmp, { events: true })
  await save(vm.qemu, `exec:cat > ${saved}`)
  const run = farfault('park', vm.image, '--from', saved, '--json')
  assert.deepEqual(await run.ended, { code: 0, signal: null })
  assert.equal(JSON.parse(run.out).ok, true)
  rmSync(saved)
  const inspect = farfault('inspect', vm.image, '--verify')
  assert.deepEqual(await inspect.ended, { code: 0, signal: null })
  assert.match(inspect.out, /pc-i440fx-7\.2[\s\S]*pc\.ram[\s\S]*globalstate/)
})
