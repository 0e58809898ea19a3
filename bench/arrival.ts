// One VM comes from a source to a QEMU of its own, and all that is measured of it.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Qemu } from '../src/qemu/launch.js'
import { waitForMigration } from '../src/qemu/migration.js'
import { startTestGuest } from '../test/qemu/guests.js'
import type { Sample } from './benchmark.js'
import { parseFaults, traceArgs, waiting } from './faults.js'
import { RUN_MS_MAX } from './programs.js'
import type { Moved, ReadySource, SourceKind } from './sources.js'
import type { StoredVm } from './stored-vm.js'
import { lastBeat } from './workloads.js'

const MiB = 2 ** 20
const GiB = 2 ** 30
/** What is looked at, from QEMU's RESUME event on. */
const FIRST_MS = 5000
const CAPABILITIES = ['events', 'postcopy-ram', 'postcopy-blocktime']

export const ARRIVAL_METRICS = [
  { name: 'all in', unit: 'ms' },
  { name: 'sent', unit: 'MiB' },
  { name: 'cpu', unit: 'ms/GiB' },
] as const

export const GUEST_METRICS = [
  { name: 'mean', unit: 'us' },
  { name: 'p50', unit: 'us' },
  { name: 'p99', unit: 'us' },
  { name: 'p99.9', unit: 'us' },
  { name: 'faults', unit: 'in 5 s' },
  { name: 'blocked', unit: 'ms of 5 s' },
  { name: 'blocktime', unit: 'ms' },
  { name: 'operations', unit: '1000 in 5 s' },
  { name: 'RESUME', unit: 'ms' },
] as const

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

/** A destination that waits, and a source that is ready to come to it; both are gone afterwards. */
async function withBoth(
  vm: StoredVm,
  kind: SourceKind,
  { limit = 0, paused = false },
  work: (qemu: Qemu, source: ReadySource, log: string) => Promise<Sample>,
): Promise<Sample> {
  const source = await kind(vm, limit)
  const log = join(vm.directory, 'trace')
  const incoming = {
    ...vm.options,
    paused,
    incoming: true,
    capabilities: [...CAPABILITIES, ...source.capabilities],
    // As `resume` starts one, and libvirt: its threads have names.
    args: [...traceArgs(log), '-name', 'debug-threads=on'],
  }
  const qemu = await startTestGuest(vm.binary, incoming)
  try {
    return await work(qemu, source, log)
  } finally {
    await qemu.kill()
    await source.stop()
  }
}

/** The source is told to come. Answers when that was, µs since 1970. */
async function send(qemu: Qemu, source: ReadySource): Promise<number> {
  const uri = `unix:${join(qemu.directory, 'migrate')}`
  await qemu.qmp.execute('migrate-incoming', { uri })
  const startUs = nowUs()
  await source.move(uri)
  return startUs
}

function untilAllIn(qemu: Qemu) {
  return waitForMigration(qemu.qmp, ['completed'], { timeoutMs: RUN_MS_MAX })
}

const sampleOf = ({ bytes, cpuMs }: Moved, allInUs: number): Sample => ({
  'all in': allInUs / 1000,
  sent: bytes / MiB,
  cpu: (cpuMs / bytes) * GiB,
})

/** The guest stands still: nothing is asked for. Gives ARRIVAL_METRICS. */
export function arrivePaused(vm: StoredVm, kind: SourceKind): Promise<Sample> {
  return withBoth(vm, kind, { paused: true }, async (qemu, source) => {
    const at = follow(qemu)
    const startUs = await send(qemu, source)
    await untilAllIn(qemu)
    return sampleOf(await source.done(), at.completed - startUs)
  })
}

/**
 * The guest runs. Gives GUEST_METRICS of its first seconds, and ARRIVAL_METRICS.
 * @param limit bytes a second for what nobody asks for, in that time; 0: none.
 */
export function arriveRunning(vm: StoredVm, kind: SourceKind, limit: number): Promise<Sample> {
  return withBoth(vm, kind, { limit }, async (qemu, source, log) => {
    const at = follow(qemu)
    const running = qemu.qmp.waitForEvent('RESUME', { timeoutMs: RUN_MS_MAX })
    const startUs = await send(qemu, source)
    await running
    await sleep(FIRST_MS - (nowUs() - at.resume) / 1000)
    const done = lastBeat(qemu.output())?.operations ?? source.from.operations
    if (limit > 0) await source.unlimit()
    const { 'postcopy-blocktime': blocktime = Number.NaN } = await untilAllIn(qemu)
    const moved = await source.done()
    const faults = parseFaults(readFileSync(log, 'latin1'))
    return {
      ...waiting(faults, at.resume, at.resume + FIRST_MS * 1000),
      blocktime,
      operations: (done - source.from.operations) / 1000,
      RESUME: (at.resume - startUs) / 1000,
      ...sampleOf(moved, at.completed - startUs),
    }
  })
}
