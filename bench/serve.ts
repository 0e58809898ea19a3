// A VM comes to a QEMU by postcopy: how long its guest waits for pages in its first seconds, and when all RAM is in. The
// source is farfault, from an image, or the QEMU that holds the same VM; the destination is the same QEMU in both cases.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Qemu } from '../src/qemu/launch.js'
import { waitForMigration } from '../src/qemu/migration.js'
import { findQemus, type QemuBinary } from '../test/qemu/find.js'
import { startTestGuest } from '../test/qemu/guests.js'
import type { Benchmark, Sample, Variant } from './benchmark.js'
import { parseFaults, traceArgs, waiting } from './faults.js'
import type { BenchOptions } from './options.js'
import { RUN_MS_MAX } from './programs.js'
import { farfault, qemuSource, type SourceKind } from './sources.js'
import { forgetVm, lazily, type StoredVm, storeVm } from './stored-vm.js'
import { lastBeat, WORKLOADS, type Workload, workloadOptions } from './workloads.js'

const MiB = 2 ** 20
const RAM_MIB = 1024
/** What is looked at, from QEMU's RESUME event on. */
const FIRST_MS = 5000
/** Bytes a second where it is limited. */
const LIMIT = 10 * MiB

/** One line for each way to serve. */
const SOURCES: Readonly<Record<string, SourceKind>> = {
  farfault: farfault(),
  'farfault without a pause': farfault({ quietMs: 0 }),
  qemu: qemuSource,
}
const COMPARED = 'qemu'

const nowUs = (): number => (performance.timeOrigin + performance.now()) * 1000

/** When QEMU said that it runs, and that all is in, µs since 1970 by its own clock. */
function follow({ qmp }: Qemu) {
  const at = { resume: Number.NaN, completed: Number.NaN }
  qmp.on('RESUME', (_, us) => {
    at.resume = us
  })
  qmp.on('MIGRATION', ({ status }, us) => {
    if (status === 'completed') at.completed = us
  })
  return at
}

const CAPABILITIES = ['events', 'postcopy-ram', 'postcopy-blocktime']

async function move(vm: StoredVm, kind: SourceKind, limit: number): Promise<Sample> {
  const source = await kind(vm, limit)
  const log = join(vm.directory, 'trace')
  const incoming = { ...vm.options, incoming: true, capabilities: CAPABILITIES, args: traceArgs(log) }
  const qemu = await startTestGuest(vm.binary, incoming)
  try {
    const at = follow(qemu)
    const running = qemu.qmp.waitForEvent('RESUME', { timeoutMs: RUN_MS_MAX })
    const uri = `unix:${join(qemu.directory, 'migrate')}`
    await qemu.qmp.execute('migrate-incoming', { uri })
    const startUs = nowUs()
    await source.move(uri)
    await running
    await sleep(FIRST_MS - (nowUs() - at.resume) / 1000)
    const operations =
      (lastBeat(qemu.output())?.operations ?? source.from.operations) - source.from.operations
    if (limit > 0) await source.unlimit()
    const { 'postcopy-blocktime': blocktime = Number.NaN } = await waitForMigration(qemu.qmp, ['completed'], {
      timeoutMs: RUN_MS_MAX,
    })
    const { bytes, cpuMs } = await source.done()
    const faults = parseFaults(readFileSync(log, 'latin1'))
    const { blockedMs, ...first } = waiting(faults, at.resume, at.resume + FIRST_MS * 1000)
    return {
      ...first,
      blocked: blockedMs,
      blocktime,
      operations: operations / 1000,
      resume: (at.resume - startUs) / 1000,
      allIn: (at.completed - startUs) / 1000,
      sent: bytes / MiB,
      cpu: (cpuMs / bytes) * 2 ** 30,
    }
  } finally {
    await qemu.kill()
    await source.stop()
  }
}

const METRICS = [
  { name: 'p50', unit: 'us' },
  { name: 'p99', unit: 'us' },
  { name: 'p999', unit: 'us' },
  { name: 'faults', unit: 'in 5 s' },
  { name: 'blocked', unit: 'ms of 5 s' },
  { name: 'blocktime', unit: 'ms' },
  { name: 'operations', unit: '1000 in 5 s' },
  { name: 'resume', unit: 'ms' },
  { name: 'allIn', unit: 'ms' },
  { name: 'sent', unit: 'MiB' },
  { name: 'cpu', unit: 'ms/GiB' },
]

function benchmark(binary: QemuBinary, work: Workload, ramMiB: number, limit: number): Benchmark {
  const vm = lazily(() => storeVm(binary, workloadOptions(work, ramMiB)), forgetVm)
  const variants = Object.entries(SOURCES).map(
    ([name, kind]): Variant => ({ name, run: async () => move(await vm.get(), kind, limit) }),
  )
  const limited = limit === 0 ? '' : `, ${limit / MiB} MiB/s for what nobody asked for`
  return {
    name: `serve ${work}${limit === 0 ? '' : ' limited'}, QEMU ${binary.version}`,
    about: `the guest "${work}" with ${ramMiB} MiB comes to a QEMU by postcopy${limited}`,
    rounds: 7,
    metrics: METRICS,
    variants,
    ratios: variants.filter(({ name }) => name !== COMPARED).map(({ name }) => [name, COMPARED] as const),
    finish: vm.end,
  }
}

const ALL = Object.keys(WORKLOADS) as Workload[]
const LIMITED_WORK: Workload = 'kv'

export function serve({ qemus, guests, ramMiB: [ramMiB = RAM_MIB] }: BenchOptions): readonly Benchmark[] {
  const works = ALL.filter((work) => guests.length === 0 || guests.includes(work))
  return findQemus()
    .filter(({ version }) => qemus.length === 0 || qemus.includes(version))
    .flatMap((binary) => works.map((work) => benchmark(binary, work, ramMiB, 0)))
}

export function serveLimited({ qemus, ramMiB: [ramMiB = RAM_MIB] }: BenchOptions): readonly Benchmark[] {
  return findQemus()
    .filter(({ version }) => qemus.length === 0 || qemus.includes(version))
    .map((binary) => benchmark(binary, LIMITED_WORK, ramMiB, LIMIT))
}
