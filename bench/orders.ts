// Orders of pages: a parked Linux guest comes to life in each of them. How many pages it asks for, against what replay says of
// its trace; how long its CPU waits for them, and when it does its first work.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { convertStream } from '../src/image/convert.js'
import { workingSetPath } from '../src/image/sidecar.js'
import { ORDERS, type OrderName, replayTrace, resume } from '../src/index.js'
import { waitForMigration } from '../src/qemu/migration.js'
import { findQemus, LINUX_GUEST, type QemuBinary } from '../test/qemu/find.js'
import { startTestGuest } from '../test/qemu/guests.js'
import type { Benchmark, Sample, Variant } from './benchmark.js'
import { readIntoCache } from './process-facts.js'
import { lazily, prepareToSave } from './stored-vm.js'

const RAM_MIB = 256
const MACHINE = 'pc-q35-7.2'
/** How long a run is watched, and the trace taken, ms. */
const WATCH_MS = 6000
const BEAT_MS_MAX = 60_000

interface Parked {
  readonly directory: string
  readonly image: string
}

async function park(binary: QemuBinary): Promise<Parked> {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-bench-orders-'))
  const image = join(directory, 'vm.img')
  const qemu = await startTestGuest(binary, {
    ...{ guest: 'linux', ramMiB: RAM_MIB, machine: MACHINE, capabilities: ['events'] },
  })
  try {
    await qemu.waitForOutput(/beat 5\r?\n/, { timeoutMs: BEAT_MS_MAX })
    await qemu.qmp.execute('stop')
    await prepareToSave(qemu)
    await qemu.qmp.execute('migrate', { uri: `exec:cat > ${image}.stream` })
    await waitForMigration(qemu.qmp, ['completed'])
  } finally {
    await qemu.kill()
  }
  await convertStream(`${image}.stream`, image)
  readIntoCache(image)
  rmSync(`${image}.stream`)
  return { directory, image }
}

/** One for each QEMU, and for all rounds. */
const PARKED = findQemus().map((binary) => ({
  binary,
  vm: lazily(
    () => park(binary),
    async ({ directory }) => rmSync(directory, { recursive: true, force: true }),
  ),
}))

/** @param order undefined: on demand, which takes the trace. */
async function run(binary: QemuBinary, { image }: Parked, order: OrderName | undefined): Promise<Sample> {
  const { kernel, initrd } = LINUX_GUEST
  const { qemu, done, demand, resumedMs } = await resume(image, {
    command: [
      ...[binary.path, '-accel', 'tcg', '-machine', MACHINE, '-m', `${RAM_MIB}M`, '-nodefaults'],
      ...['-display', 'none', '-serial', 'stdio', '-kernel', kernel, '-initrd', initrd],
      ...['-append', 'console=ttyS0 quiet panic=1'],
    ],
    ...(order === undefined ? { push: false } : { order }),
    ...{ console: 'collect', blocktime: true, recordMaxMs: WATCH_MS },
  })
  const startMs = performance.now()
  try {
    await qemu.waitForOutput(/beat \d+\r?\n/, { timeoutMs: BEAT_MS_MAX })
    const beatMs = performance.now() - startMs + resumedMs!
    const endMs = performance.now() + 2 * WATCH_MS
    while (demand().run === null && performance.now() < endMs) {
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    if (order === undefined) return {}
    const report = await done
    if (!report.ok) throw new Error(report.error)
    const { 'postcopy-blocktime': blocktime = 0 } = await qemu.qmp.execute<{ 'postcopy-blocktime'?: number }>(
      'query-migrate',
    )
    const { asked, bytesPerSecond } = demand().run!
    const replayed = replayTrace(workingSetPath(image), { orders: [order], bandwidth: bytesPerSecond })
    const predicted = replayed.orders[1]!.faults
    return { faults: asked, predicted, off: Math.abs(predicted - asked), blocktime, beat: beatMs }
  } finally {
    await qemu.kill()
    await done
  }
}

const variantsOf = ({ binary, vm: parked }: (typeof PARKED)[number]): readonly Variant[] =>
  (Object.keys(ORDERS) as OrderName[]).map((order, i) => ({
    name: `${order}, ${binary.version}`,
    async run() {
      const vm = await parked.get()
      if (i === 0) {
        // A trace for each round: one that was taken in a bad moment of the machine must not speak for all.
        rmSync(workingSetPath(vm.image), { force: true })
        await run(binary, vm, undefined)
      }
      return run(binary, vm, order)
    },
  }))

export const orders: Benchmark = {
  name: 'orders',
  about: `a parked Linux with ${RAM_MIB} MiB of RAM comes to life in a QEMU`,
  rounds: 3,
  metrics: [
    { name: 'faults', unit: 'pages' },
    { name: 'predicted', unit: 'pages' },
    { name: 'off', unit: 'pages' },
    { name: 'blocktime', unit: 'ms' },
    { name: 'beat', unit: 'ms' },
  ],
  variants: PARKED.flatMap(variantsOf),
  ratios: PARKED.flatMap(({ binary: { version } }) =>
    (['fault-around', 'bubbling', 'recorded', 'recorded-around'] as const).map(
      (order) => [`${order}, ${version}`, `linear, ${version}`] as const,
    ),
  ),
  async finish() {
    for (const { vm } of PARKED) await vm.end()
  },
}
