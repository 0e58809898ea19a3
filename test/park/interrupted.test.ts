// Parkings that fail, are refused, cancelled or killed: the VM goes on as it was, and nothing looks like an image.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { buildRom, romRange } from '../../src/guest/rom.js'
import { parkFrom } from '../../src/image/park.js'
import { setMigrationCapabilities, waitForMigration } from '../../src/qemu/migration.js'
import { park } from '../../src/vm/park.js'
import { farfault } from '../cli/farfault.js'
import { MiB, temporaryDirectory } from '../image/images.js'
import { skipReason } from '../qemu/find.js'
import type { TestGuestOptions } from '../qemu/guests.js'
import { assertGoesOn, assertNoImage, assertSound, remnants, settings, startVm, type Vm } from './vms.js'

const TIMEOUT_MS = 180_000
const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url))

/** RAM that takes a second or so to park: there is time to interrupt it. */
const LARGE: TestGuestOptions = { guest: buildRom(romRange(384 * MiB, 1 * MiB, 300 * MiB)), ramMiB: 384 }
const SMALL: TestGuestOptions = { guest: 'rom', ramMiB: 32 }

const partial = (vm: Vm): boolean => remnants(vm).some((name) => name.startsWith('.vm.img.'))

async function largeVm(t: TestContext, version: string): Promise<Vm> {
  const vm = await startVm(t, version, LARGE)
  await vm.qemu.waitForOutput(/b/, { timeoutMs: 30_000 })
  return vm
}

/** Once pages are being written. */
async function whenWriting(vm: Vm): Promise<void> {
  while (!partial(vm)) await new Promise((resolve) => setTimeout(resolve, 5))
}

for (const version of ['7.2', '10.0']) {
  const options = { skip: skipReason({ qemus: [version] }), timeout: TIMEOUT_MS }

  test(`a park of QEMU ${version} that is killed leaves no image, and the VM goes on`, options, async (t) => {
    const vm = await largeVm(t, version)
    const run = farfault('park', vm.image, '--qmp', vm.qmp)
    await whenWriting(vm)
    run.child.kill('SIGKILL')
    await run.ended
    assertNoImage(vm)
    await waitForMigration(vm.qemu.qmp, ['failed', 'cancelled']).catch(() => {})
    await assertGoesOn(vm)
    assert.equal(remnants(vm).length, 1)
    const again = farfault('park', vm.image, '--qmp', vm.qmp, '--json')
    assert.deepEqual(await again.ended, { code: 0, signal: null }, again.err)
    assert.equal(JSON.parse(again.out).ok, true)
    assertSound(vm.image)
    assert.deepEqual(remnants(vm), [])
  })

  test(`ctrl-C in a park of QEMU ${version}: all is as it was`, options, async (t) => {
    const vm = await largeVm(t, version)
    const before = await settings(vm)
    const run = farfault('park', vm.image, '--qmp', vm.qmp, '--json')
    await whenWriting(vm)
    run.child.kill('SIGINT')
    assert.deepEqual(await run.ended, { code: 130, signal: null }, run.err)
    assert.equal(JSON.parse(run.out).ok, false)
    assertNoImage(vm)
    assert.deepEqual(remnants(vm), [])
    await assertGoesOn(vm)
    assert.deepEqual(await settings(vm), before)
  })

  test(`a full disk ends a park of QEMU ${version}: all is as it was`, options, async (t) => {
    const vm = await startVm(t, version, SMALL)
    await vm.qemu.waitForOutput(/b/)
    const before = await settings(vm)
    // A limit on the length of files comes as near to a full disk as one gets without being root.
    const script = 'trap "" XFSZ; ulimit -f 8192; exec "$0" "$@"'
    const child = spawn('sh', ['-c', script, process.execPath, MAIN, 'park', vm.image, '--qmp', vm.qmp])
    t.after(() => child.kill('SIGKILL'))
    let said = ''
    child.stderr.on('data', (bytes) => {
      said += bytes
    })
    const [code] = await once(child, 'close')
    assert.equal(code, 1)
    assert.match(said, /EFBIG/)
    assertNoImage(vm)
    assert.deepEqual(remnants(vm), [])
    await assertGoesOn(vm)
    assert.deepEqual(await settings(vm), before)
  })

  test(`what QEMU ${version} cannot have is refused before anything is done`, options, async (t) => {
    const vm = await startVm(t, version, SMALL)
    await vm.qemu.waitForOutput(/b/)
    for (const capability of ['multifd', 'x-ignore-shared', 'dirty-bitmaps']) {
      await setMigrationCapabilities(vm.qemu.qmp, { [capability]: true })
      const before = await settings(vm)
      await assert.rejects(park({ qmp: vm.qmp, path: vm.image }), (error: Error) =>
        error.message.includes(`"${capability}"`),
      )
      assert.deepEqual(await settings(vm), before)
      await setMigrationCapabilities(vm.qemu.qmp, { [capability]: false })
    }
    await assert.rejects(park({ qmp: vm.qmp, path: '/nowhere/vm.img' }), /cannot write to \/nowhere: ENOENT/)
    writeFileSync(vm.image, 'mine')
    await assert.rejects(park({ qmp: vm.qmp, path: vm.image }), /exists/)
    await assertGoesOn(vm)
  })

  test(`multifd channels of QEMU ${version} are refused by name`, options, async (t) => {
    const vm = await startVm(t, version, { ...SMALL, capabilities: ['events', 'multifd', 'return-path'] })
    await vm.qemu.waitForOutput(/b/)
    const parking = parkFrom({ listen: `unix:${vm.directory}/park`, path: vm.image })
    t.after(parking.cancel)
    await vm.qemu.qmp.execute('migrate', { uri: parking.uri })
    const report = await parking.done
    assert.match(report.error ?? '', /multifd/)
    assertNoImage(vm)
    await assertGoesOn(vm)
  })
}

test('disks that QEMU 7.2 sends with the RAM are refused by name', {
  skip: skipReason({ qemus: ['7.2'] }),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const disk = join(temporaryDirectory(t), 'disk')
  writeFileSync(disk, Buffer.alloc(1 * MiB))
  const args = ['-drive', `file=${disk},format=raw,if=virtio`]
  const vm = await startVm(t, '7.2', { ...SMALL, args, capabilities: ['events', 'return-path'] })
  await vm.qemu.waitForOutput(/b/)
  const parking = parkFrom({ listen: `unix:${vm.directory}/park`, path: vm.image })
  t.after(parking.cancel)
  await vm.qemu.qmp.execute('migrate', { uri: parking.uri, blk: true })
  const report = await parking.done
  assert.match(report.error ?? '', /block/)
  assertNoImage(vm)
  await assertGoesOn(vm)
})

test('who sends nonsense is told apart, and leaves nothing', { timeout: TIMEOUT_MS }, async (t) => {
  const directory = temporaryDirectory(t)
  for (const [index, bytes] of [
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    Buffer.alloc(100_000, 0xff),
    Buffer.concat([Buffer.from('QEVM\0\0\0\x03\x07\0\0\0\x02pc'), Buffer.alloc(70_000, 8)]),
    Buffer.alloc(0),
  ].entries()) {
    const path = join(directory, `${index}.img`)
    const parking = parkFrom({ listen: 'tcp:127.0.0.1:0', path })
    t.after(parking.cancel)
    const port = Number(parking.uri.split(':').at(-1))
    const socket = connect({ port, host: '127.0.0.1' })
    socket.on('error', () => {})
    socket.end(bytes)
    const { ok, cause } = await parking.done
    assert.equal(ok, false)
    assert.match((cause as Error & { code: string }).code, /PROTOCOL|CHANNEL/)
    assert.equal(existsSync(path), false)
  }
})

test('waiting for a source is given up', { timeout: TIMEOUT_MS }, async (t) => {
  const path = join(temporaryDirectory(t), 'vm.img')
  const parking = parkFrom({ listen: 'tcp:127.0.0.1:0', path })
  parking.cancel()
  const { ok, cause } = await parking.done
  assert.equal(ok, false)
  assert.equal((cause as Error & { code: string }).code, 'CANCELLED')
})
