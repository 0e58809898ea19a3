// Orders of pages with real QEMUs: in each of them a guest that writes to all of its RAM while it arrives finds it right, and
// a run that was recorded makes the next one ask for almost nothing.

import assert from 'node:assert/strict'
import { copyFileSync, existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { buildRom, checkRam, romRange } from '../../src/guest/rom.js'
import { convertStream } from '../../src/image/convert.js'
import { LEARNT_PAGES_MIN } from '../../src/image/demand.js'
import { workingSetPath } from '../../src/image/sidecar.js'
import {
  inspectFile,
  ORDERS,
  type OrderName,
  park as parkVm,
  type ResumeOptions,
  replayTrace,
  resume,
} from '../../src/index.js'
import { waitForMigration } from '../../src/qemu/migration.js'
import { save, temporaryDirectory } from '../image/images.js'
import { findQemu, LINUX_GUEST, skipReason } from '../qemu/find.js'
import { beats, pmemsave, startTestGuest } from '../qemu/guests.js'

const MiB = 1024 * 1024
const directory = temporaryDirectory({ after } as never)
const MACHINE = ['-accel', 'tcg', '-machine', 'pc-i440fx-7.2', '-nodefaults', '-display', 'none']

interface Parked {
  readonly image: string
  /** Without the QEMU itself. */
  readonly args: readonly string[]
}

const parked = new Map<string, Promise<Parked>>()

/** Parked once by a QEMU 7.2: both versions take the machine. */
function park(name: 'rom' | 'linux'): Promise<Parked> {
  const image = parked.get(name) ?? (name === 'rom' ? parkRom() : parkLinux())
  parked.set(name, image)
  return image
}

const ROM_MIB = 24
const RANGE = romRange(ROM_MIB * MiB, 1 * MiB, ROM_MIB * MiB)

async function parkRom(): Promise<Parked> {
  const rom = join(directory, 'rom.bin')
  writeFileSync(rom, buildRom(RANGE))
  const qemu = await startTestGuest(findQemu('7.2')!, { guest: buildRom(RANGE), ramMiB: ROM_MIB })
  await qemu.waitForOutput(/c/, { timeoutMs: 60_000 })
  const image = await store(qemu, 'rom.img')
  return { image, args: [...MACHINE, '-m', `${ROM_MIB}M`, '-serial', 'stdio', '-bios', rom] }
}

async function parkLinux(): Promise<Parked> {
  const qemu = await startTestGuest(findQemu('7.2')!, { guest: 'linux', ramMiB: 160 })
  await qemu.waitForOutput(/beat 5\r?\n/, { timeoutMs: 120_000 })
  const { kernel, initrd } = LINUX_GUEST
  const linux = ['-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=1']
  return {
    image: await store(qemu, 'linux.img'),
    args: [...MACHINE, '-m', '160M', '-serial', 'stdio', ...linux],
  }
}

async function store(qemu: Awaited<ReturnType<typeof startTestGuest>>, name: string): Promise<string> {
  const image = join(directory, name)
  await qemu.qmp.execute('stop')
  await save(qemu, `exec:cat > ${image}.stream`)
  await qemu.kill()
  await convertStream(`${image}.stream`, image)
  rmSync(`${image}.stream`)
  return image
}

const start = (version: string, { image, args }: Parked, options: Partial<ResumeOptions>) =>
  resume(image, { command: [findQemu(version)!.path, ...args], console: 'collect', ...options })

const limits = { skip: skipReason({ qemus: ['7.2', '10.0'], linuxGuest: true }), timeout: 300_000 }

for (const version of ['7.2', '10.0']) {
  test(`QEMU ${version}: RAM is right in each order`, limits, async () => {
    const vm = await park('rom')
    rmSync(workingSetPath(vm.image), { force: true })
    for (const [i, order] of (Object.keys(ORDERS) as OrderName[]).entries()) {
      const { qemu, done, demand } = await start(version, vm, { order, preempt: i % 2 === 1 })
      try {
        const report = await done
        assert.ok(report.ok, `${order}: ${report.error}`)
        await waitForMigration(qemu.qmp, ['completed'])
        await qemu.waitForOutput(/[a-z]{3}/, { timeoutMs: 60_000 })
        await qemu.qmp.execute('stop')
        const ram = await pmemsave(qemu, 0, ROM_MIB * MiB)
        const { wrongAt, detail } = checkRam(ram, RANGE)
        assert.equal(wrongAt, undefined, `${order}: ${detail}`)
        assert.equal(demand().order, order)
        assert.ok(demand().run!.asked > 0)
      } finally {
        await qemu.kill()
      }
    }
  })

  test(`QEMU ${version}: what one run asked for comes ahead in the next`, limits, async () => {
    const vm = await park('linux')
    rmSync(workingSetPath(vm.image), { force: true })
    const asked: number[] = []
    for (const recorded of [false, true]) {
      const { qemu, done, demand } = await start(version, vm, { verify: false })
      try {
        await qemu.waitForOutput(/beat 8\r?\n/, { timeoutMs: 60_000 })
        assert.equal(beats(qemu)[0], 6)
        const report = await done
        assert.ok(report.ok, report.error)
        const { order, run, workingSet, written, ignored, notWritten } = demand()
        assert.deepEqual([ignored, notWritten], [null, null])
        assert.equal(order, recorded ? 'recorded-around' : 'linear')
        assert.equal(workingSet === null, !recorded)
        const learns = recorded && run!.missed >= LEARNT_PAGES_MIN
        assert.equal(written!.records, learns ? 2 : 1, 'the second is, only if it missed some')
        asked.push(run!.asked)
      } finally {
        await qemu.kill()
      }
    }
    const [first, second] = asked
    assert.ok(first! > 200, `${first} pages were asked for`)
    assert.ok(second! < first! / 4, `${second} of ${first} pages were asked for again`)
    const { workingSet } = inspectFile(vm.image)
    assert.ok(workingSet!.pages >= first!)
    assert.ok(workingSet!.last.hitRate! > 0.75)
    // All of it would take longer, and a chunk takes 60 ms.
    const later = await start(version, vm, { aheadMs: 400, maxBandwidth: MiB, record: false })
    await later.qemu.kill()
    await later.done
    assert.ok(later.resumedMs! > 300, `what is known goes for so long before: ${later.resumedMs} ms`)
  })
}

test(
  'a VM that is parked again asks for the same: what is known of the image before goes ahead',
  limits,
  async () => {
    const vm = await park('linux')
    const image = join(directory, 'again.img')
    for (const suffix of ['', '.json']) copyFileSync(vm.image + suffix, image + suffix)
    const asked: number[] = []
    for (const again of [false, true]) {
      const qmp = join(directory, `again-${again}.qmp`)
      const args = [...vm.args, '-qmp', `unix:${qmp},server=on,wait=off`]
      const { qemu, done, demand } = await start('10.0', { image, args }, { verify: false })
      try {
        const report = await done
        assert.ok(report.ok, report.error)
        const { order, run, workingSet, ignored } = demand()
        assert.deepEqual([ignored, order], [null, again ? 'recorded-around' : 'linear'])
        assert.equal(workingSet?.earlier, again ? true : undefined)
        asked.push(run!.asked)
        if (again) continue
        await qemu.waitForOutput(/beat 20\r?\n/, { timeoutMs: 60_000 })
        await parkVm({ qmp, path: image, replace: true })
        assert.ok(inspectFile(image).workingSet!.earlier)
      } finally {
        await qemu.kill()
      }
    }
    const [first, second] = asked
    assert.ok(second! < first! / 4, `${second} pages were asked for, ${first} of the image before`)
  },
)

test('many at once: each records, all of it is merged, and a guest of none is hurt', limits, async () => {
  const vm = await park('linux')
  rmSync(workingSetPath(vm.image), { force: true })
  const clones = await Promise.all(
    [1, 2, 3].map((i) => start(i === 2 ? '10.0' : '7.2', vm, { record: true, recordMaxMs: 5000 })),
  )
  await Promise.all(
    clones.map(async ({ qemu, done, demand }) => {
      await qemu.waitForOutput(/beat 7\r?\n/, { timeoutMs: 120_000 })
      const report = await done
      assert.ok(report.ok, report.error)
      assert.equal(demand().notWritten, null)
      await qemu.kill()
    }),
  )
  const { workingSet } = inspectFile(vm.image)
  assert.equal(workingSet!.records, 3)
  for (const { demand } of clones) assert.ok(demand().run!.asked <= workingSet!.pages)
})

test('a run on demand is a trace: settled, and what replay makes of it is in order', limits, async () => {
  const vm = await park('linux')
  const file = workingSetPath(vm.image)
  rmSync(file, { force: true })
  const { qemu, done, demand } = await start('7.2', vm, { push: false, recordMaxMs: 3000 })
  try {
    await qemu.waitForOutput(/beat 7\r?\n/, { timeoutMs: 60_000 })
    const end = Date.now() + 20_000
    while (!existsSync(file) && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 100))
    assert.equal(demand().order, 'on-demand')
    assert.ok(demand().written !== null, 'it settles while the VM runs')
  } finally {
    await qemu.kill()
  }
  await done
  const { orders, doubts, pages } = replayTrace(file, { bandwidth: 200 * MiB })
  assert.deepEqual(doubts, [])
  const faults = new Map(orders.map(({ order, faults }) => [order, faults]))
  assert.equal(faults.get('on-demand'), pages)
  assert.ok(faults.get('fault-around')! < pages / 2)
  assert.ok(faults.get('recorded')! <= faults.get('linear')!)
})

test('a run that must not record writes nothing', limits, async () => {
  const vm = await park('rom')
  rmSync(workingSetPath(vm.image), { force: true })
  const { qemu, done, demand } = await start('10.0', vm, { record: false })
  assert.ok((await done).ok)
  await qemu.kill()
  assert.equal(demand().run, null)
  assert.equal(demand().order, 'fault-around')
  assert.ok(!existsSync(workingSetPath(vm.image)))
})
