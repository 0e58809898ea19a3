// Parked virtual machines come to life in unmodified QEMUs: the next beat is the next number, and RAM is the image's.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { convertStream } from '../../src/image/convert.js'
import { type ImageBlock, openImage } from '../../src/image/image.js'
import { GuestError, ImageError, type ResumeOptions, resume } from '../../src/index.js'
import { waitForMigration } from '../../src/qemu/migration.js'
import { ramOf, save, temporaryDirectory } from '../image/images.js'
import { findQemu, LINUX_GUEST, skipReason } from '../qemu/find.js'
import { beats, pmemsave, startTestGuest } from '../qemu/guests.js'

const MiB = 1024 * 1024
const RAM_MIB = 160
const directory = temporaryDirectory({ after } as never)
const DISK = join(directory, 'disk')
writeFileSync(DISK, Buffer.alloc(MiB))

interface Machine {
  readonly name: string
  /** RAM block that holds the machine's RAM. */
  readonly ram: string
  readonly args: readonly string[]
  /** The same name means the same machine in both versions. */
  readonly versioned: boolean
}

const MACHINES: readonly Machine[] = [
  { name: 'pc-i440fx-7.2', ram: 'pc.ram', args: [], versioned: true },
  {
    name: 'pc-q35-7.2',
    ram: 'pc.ram',
    args: [
      ...['-smp', '2', '-vga', 'std', '-drive', `if=none,id=disk,file=${DISK},format=raw`],
      ...['-device', 'virtio-blk-pci,drive=disk', '-device', 'virtio-net-pci'],
    ],
    versioned: true,
  },
  // Without ACPI, which Debian's kernel does not boot with on the microvm of 7.2.
  { name: 'microvm,acpi=off', ram: 'microvm.ram', args: [], versioned: false },
]

const commandOf = (version: string, machine: Machine, extra: readonly string[] = []): string[] => [
  findQemu(version)!.path,
  ...['-accel', 'tcg', '-machine', machine.name, '-m', `${RAM_MIB}M`, '-nodefaults', '-display', 'none'],
  ...['-serial', 'stdio', '-kernel', LINUX_GUEST.kernel, '-initrd', LINUX_GUEST.initrd],
  ...['-append', 'console=ttyS0 quiet panic=1', ...machine.args, ...extra],
]

interface Parked {
  readonly path: string
  readonly lastBeat: number
}

/** Each machine of each version is parked once. */
const parked = new Map<string, Promise<Parked>>()

function park(version: string, machine: Machine): Promise<Parked> {
  const key = `${machine.name}-${version}`
  let image = parked.get(key)
  if (image === undefined) {
    image = parkAnew(version, machine, join(directory, `${key}.img`))
    parked.set(key, image)
  }
  return image
}

async function parkAnew(version: string, machine: Machine, path: string): Promise<Parked> {
  const source = await startTestGuest(findQemu(version)!, {
    guest: 'linux',
    ramMiB: RAM_MIB,
    machine: machine.name,
    args: machine.args,
  })
  await source.waitForOutput(/beat 3\r?\n/, { timeoutMs: 60_000 })
  await source.qmp.execute('stop')
  await save(source, `exec:cat > ${path}.stream`)
  const lastBeat = beats(source).at(-1)!
  await source.kill()
  await convertStream(`${path}.stream`, path)
  return { path, lastBeat }
}

const skipFor = (...qemus: string[]) => skipReason({ qemus, linuxGuest: true })

async function assertGoesOn(
  version: string,
  machine: Machine,
  image: Parked,
  options: Partial<ResumeOptions> = {},
) {
  const command = commandOf(version, machine)
  const { qemu, done, resumedMs } = await resume(image.path, { command, console: 'collect', ...options })
  try {
    assert.ok(resumedMs !== undefined && resumedMs < 5000)
    await qemu.waitForOutput(new RegExp(`beat ${image.lastBeat + 3}\\b`), { timeoutMs: 30_000 })
    const numbers = beats(qemu)
    assert.deepEqual(
      numbers,
      Array.from(numbers, (_, i) => image.lastBeat + 1 + i),
      'no beat lost or repeated',
    )
    if (options.push === false) return undefined
    const report = await done
    assert.ok(report.ok, report.error)
    return report
  } finally {
    await qemu.kill()
  }
}

for (const machine of MACHINES) {
  for (const from of ['7.2', '10.0']) {
    for (const to of ['7.2', '10.0']) {
      if (from !== to && !machine.versioned) continue
      if (from === to && machine.name.startsWith('pc-i440fx')) continue // the richer q35 shows as much
      const limits = { skip: skipFor(from, to), timeout: 450_000 }
      test(
        `${machine.name}, parked by ${from}, resumed by ${to}: RAM is the image's, beats go on`,
        limits,
        async () => {
          const image = await park(from, machine)
          const command = commandOf(to, machine, ['-S'])
          const { qemu, done } = await resume(image.path, { command, console: 'collect' })
          try {
            const report = await done
            assert.ok(report.ok, report.error)
            await waitForMigration(qemu.qmp, ['completed'])
            const opened = openImage(image.path)
            const stored = ramOf(opened, machine.ram)
            opened.close()
            const pmem = await pmemsave(qemu, 0, RAM_MIB * MiB)
            assert.equal(pmem.compare(stored, MiB, RAM_MIB * MiB, MiB, RAM_MIB * MiB), 0, 'RAM differs')
            await qemu.qmp.execute('cont')
            await qemu.waitForOutput(new RegExp(`beat ${image.lastBeat + 2}\\b`), { timeoutMs: 30_000 })
            assert.equal(beats(qemu)[0], image.lastBeat + 1)
          } finally {
            await qemu.kill()
          }
        },
      )
    }
  }
}

const [, Q35] = MACHINES
const limits = { skip: skipFor('7.2', '10.0'), timeout: 450_000 }

for (const version of ['7.2', '10.0']) {
  test(`QEMU ${version}: it runs before its RAM is there`, limits, async () => {
    const report = await assertGoesOn(version, Q35!, await park('7.2', Q35!))
    assert.ok(report!.pages.requested > 0)
  })

  test(`QEMU ${version}: with a channel for requested pages`, limits, async () => {
    await assertGoesOn(version, Q35!, await park('7.2', Q35!), { preempt: true, blocktime: true })
  })

  test(`QEMU ${version}: pages on demand only`, limits, async () => {
    await assertGoesOn(version, Q35!, await park('7.2', Q35!), { push: false })
  })
}

test('QEMU 10.0 maps RAM from the image; 7.2 says why it cannot, and is served', limits, async () => {
  const image = await park('7.2', Q35!)
  const mapped = await resume(image.path, { command: commandOf('10.0', Q35!), console: 'collect', map: true })
  try {
    assert.equal(mapped.notMapped, undefined)
    const report = await mapped.done
    assert.ok(report.ok && report.bytes < 16 * MiB, `${report.bytes} bytes were sent`)
    await mapped.qemu.waitForOutput(new RegExp(`beat ${image.lastBeat + 2}\\b`), { timeoutMs: 30_000 })
  } finally {
    await mapped.qemu.kill()
  }
  const served = await resume(image.path, { command: commandOf('7.2', Q35!), console: 'collect', map: true })
  assert.match(served.notMapped!, /cannot map a file from an offset/)
  await served.qemu.kill()
  await served.done
})

test('three at once of one image, each a guest of its own', limits, async () => {
  const image = await park('10.0', Q35!)
  // The disk is one file: each QEMU wants the lock on it.
  const command = commandOf('10.0', Q35!).map((argument) =>
    argument.replace('format=raw', 'format=raw,file.locking=off'),
  )
  const clones = await Promise.all([1, 2, 3].map(() => resume(image.path, { command, console: 'collect' })))
  await Promise.all(
    clones.map(async ({ qemu, done }) => {
      await qemu.waitForOutput(new RegExp(`beat ${image.lastBeat + 2}\\b`), { timeoutMs: 60_000 })
      assert.equal(beats(qemu)[0], image.lastBeat + 1)
      assert.ok((await done).ok)
      await qemu.kill()
    }),
  )
})

test(
  'what does not fit is refused in plain words, and the image can be resumed afterwards',
  limits,
  async () => {
    const image = await park('7.2', Q35!)
    const refusals: [string[], RegExp][] = [
      [commandOf('7.2', { ...Q35!, name: 'pc-i440fx-7.2' }), /parked on the machine type pc-q35-7.2/],
      [
        commandOf('7.2', Q35!).map((a) => (a === `${RAM_MIB}M` ? '128M' : a)),
        /start it with the same memory/,
      ],
      [commandOf('7.2', { ...Q35!, args: ['-smp', '2'] }), /start it with the same devices/],
      [[...commandOf('7.2', Q35!), '-nonsense'], /nonsense/],
    ]
    for (const [command, message] of refusals) {
      await assert.rejects(resume(image.path, { command, console: 'collect' }), (error: unknown) => {
        assert.ok(error instanceof GuestError, String(error))
        assert.match(error.message, message)
        return true
      })
    }
    await assertGoesOn('7.2', Q35!, image)
  },
)

/** The image at `path`, with one byte changed in each of these pages of its RAM. */
function damage(image: Parked, path: string, pagesOf: (ram: ImageBlock) => Iterable<number>): void {
  const opened = openImage(image.path)
  const ram = opened.blocks.find(({ name }) => name === 'pc.ram')!
  opened.close()
  const bytes = readFileSync(image.path)
  for (const page of pagesOf(ram)) bytes[ram.pagesOffset + page * 4096 + 100]! ^= 1
  writeFileSync(path, bytes)
  writeFileSync(`${path}.json`, readFileSync(`${image.path}.json`))
}

test('damaged page data is found when it is served; the guest does not go on with it', limits, async () => {
  const image = await park('7.2', Q35!)
  const path = join(directory, 'damaged.img')
  damage(image, path, ({ present }) => [present.nextSet(Math.floor(present.length / 2))])
  const { qemu, done } = await resume(path, { command: commandOf('7.2', Q35!), console: 'collect' })
  const report = await done
  assert.equal(report.ok, false)
  assert.ok(report.cause instanceof ImageError)
  assert.match(report.error!, /page data of .*pc\.ram/)
  await qemu.kill()
})

test(
  'a VM that cannot start for damaged pages: the reason is the damage, not what QEMU says',
  limits,
  async () => {
    const image = await park('10.0', Q35!)
    const path = join(directory, 'all-damaged.img')
    damage(image, path, function* ({ present }) {
      for (let page = present.nextSet(0); page >= 0; page = present.nextSet(page + 1)) yield page
    })
    await assert.rejects(resume(path, { command: commandOf('10.0', Q35!), console: 'collect' }), ImageError)
  },
)
