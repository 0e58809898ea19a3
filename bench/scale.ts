// Does it scale? Many VMs come to life from one image at once; and one VM with more and more RAM, most of it never used.
// When they run, and what the servers and the QEMUs take.

import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Qemu } from '../src/qemu/launch.js'
import type { QemuBinary } from '../test/qemu/find.js'
import { startTestGuest } from '../test/qemu/guests.js'
import { type Benchmark, quantile, type Sample } from './benchmark.js'
import { type BenchOptions, wantedQemus } from './options.js'
import { cachedMiB, cpuMs, memoryOf } from './process-facts.js'
import { nodeChild, RUN_MS_MAX, type Running, start } from './programs.js'
import { forgetVm, lazily, type StoredVm, storeVm } from './stored-vm.js'
import { BEAT, type Workload, workloadOptions } from './workloads.js'

const WORK: Workload = 'idle'
const AT_ONCE = [1, 2, 4, 8, 16]
const AT_ONCE_RAM_MIB = 256
const RAM_MIB = [256, 1024, 4096, 16_384]
/** After the last has said something: what they take is looked at then. */
const SETTLE_MS = 2000

interface Pair {
  readonly server: Running
  readonly qemu: Qemu
}

async function startPair(vm: StoredVm): Promise<Pair> {
  const server = start(nodeChild('serve.child', vm.image, '{}'))
  try {
    await server.line() // ready
    return { server, qemu: await startTestGuest(vm.binary, { ...vm.options, incoming: true }) }
  } catch (error) {
    server.stop()
    throw error
  }
}

interface Came {
  readonly resumeMs: number
  readonly outputMs: number
}

async function come({ server, qemu }: Pair): Promise<Came> {
  const uri = `unix:${join(qemu.directory, 'migrate')}`
  const running = qemu.qmp.waitForEvent('RESUME', { timeoutMs: RUN_MS_MAX })
  const startMs = performance.now()
  await qemu.qmp.execute('migrate-incoming', { uri })
  server.say(`connect ${uri}`)
  await running
  const resumeMs = performance.now() - startMs
  await qemu.waitForOutput(BEAT, { timeoutMs: RUN_MS_MAX })
  return { resumeMs, outputMs: performance.now() - startMs }
}

async function resumeAtOnce(vm: StoredVm, count: number): Promise<Sample> {
  const pairs: Pair[] = []
  try {
    for (let i = 0; i < count; i++) pairs.push(await startPair(vm))
    const before = pairs.map(({ server }) => cpuMs(server.pid))
    const came = await Promise.all(pairs.map(come))
    await sleep(SETTLE_MS)
    return {
      ...times(came),
      'server cpu': mean(pairs, ({ server }, i) => cpuMs(server.pid) - before[i]!),
      ...memory(pairs),
      cached: cachedMiB(vm.image),
    }
  } finally {
    // The servers first: they would say that they have lost their VM.
    for (const { server } of pairs) server.stop()
    for (const { qemu } of pairs) await qemu.kill()
  }
}

function times(came: readonly Came[]): Sample {
  const sorted = (which: (each: Came) => number): Float64Array => Float64Array.from(came, which).sort()
  const resumes = sorted(({ resumeMs }) => resumeMs)
  return {
    RESUME: quantile(resumes, 0.5),
    'last RESUME': quantile(resumes, 1),
    'last output': quantile(
      sorted(({ outputMs }) => outputMs),
      1,
    ),
  }
}

function memory(pairs: readonly Pair[]): Sample {
  const servers = pairs.map(({ server }) => memoryOf(server.pid))
  const qemus = pairs.map(({ qemu }) => memoryOf(qemu.pid))
  return {
    'server Pss': mean(servers, ({ pssMiB }) => pssMiB),
    'server private': mean(servers, ({ privateDirtyMiB }) => privateDirtyMiB),
    'qemu Pss': mean(qemus, ({ pssMiB }) => pssMiB),
    'qemu private': mean(qemus, ({ privateDirtyMiB }) => privateDirtyMiB),
  }
}

function mean<T>(all: readonly T[], of: (each: T, index: number) => number): number {
  return all.reduce((sum, each, i) => sum + of(each, i), 0) / all.length
}

const METRICS = [
  { name: 'RESUME', unit: 'ms' },
  { name: 'last RESUME', unit: 'ms' },
  { name: 'last output', unit: 'ms' },
  { name: 'server cpu', unit: 'ms each' },
  { name: 'server Pss', unit: 'MiB each' },
  { name: 'server private', unit: 'MiB each' },
  { name: 'qemu Pss', unit: 'MiB each' },
  { name: 'qemu private', unit: 'MiB each' },
  { name: 'cached', unit: 'MiB of the image' },
]

function manyAtOnce(binary: QemuBinary): Benchmark {
  const vm = lazily(() => storeVm(binary, workloadOptions(WORK, AT_ONCE_RAM_MIB)), forgetVm)
  const name = (count: number): string => `${count} at once`
  return {
    name: `scale at once, QEMU ${binary.version}`,
    about: `VMs with ${AT_ONCE_RAM_MIB} MiB come to life from one image at once`,
    rounds: 3,
    metrics: METRICS,
    variants: AT_ONCE.map((count) => ({
      name: name(count),
      run: async () => resumeAtOnce(await vm.get(), count),
    })),
    ratios: [[name(AT_ONCE.at(-1)!), name(1)]],
    finish: vm.end,
  }
}

function moreRam(binary: QemuBinary, sizes: readonly number[]): Benchmark {
  // Its QEMU is not wanted any more, and has gigabytes.
  const store = async (ramMiB: number): Promise<StoredVm> => {
    const vm = await storeVm(binary, workloadOptions(WORK, ramMiB, false))
    await vm.qemu.quit()
    return vm
  }
  const vms = sizes.map((ramMiB) => ({ ramMiB, vm: lazily(() => store(ramMiB), forgetVm) }))
  const name = (ramMiB: number): string => `${ramMiB} MiB`
  return {
    name: `scale RAM, QEMU ${binary.version}`,
    about: 'a VM whose RAM is mostly unused comes to life',
    rounds: 3,
    metrics: METRICS,
    variants: vms.map(({ ramMiB, vm }) => ({
      name: name(ramMiB),
      run: async () => resumeAtOnce(await vm.get(), 1),
    })),
    ratios: sizes.length < 2 ? [] : [[name(sizes.at(-1)!), name(sizes[0]!)]],
    async finish() {
      for (const { vm } of vms) await vm.end()
    },
  }
}

export function scale(options: BenchOptions): readonly Benchmark[] {
  const sizes = options.ramMiB.length === 0 ? RAM_MIB : options.ramMiB
  return wantedQemus(options).flatMap((binary) => [manyAtOnce(binary), moreRam(binary, sizes)])
}
