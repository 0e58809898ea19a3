// A VM comes to a QEMU by postcopy. The source is farfault, from an image, or the QEMU that holds the same VM; the destination
// is the same QEMU in both cases. `serve`: how long its guest waits for pages in its first seconds, what it gets done, when
// all RAM is in. `resident`: when all RAM is in, and what that costs the source, with a guest that stands still.

import type { QemuBinary } from '../test/qemu/find.js'
import { ARRIVAL_METRICS, arrivePaused, arriveRunning, GUEST_METRICS } from './arrival.js'
import type { Benchmark, Metric, Sample } from './benchmark.js'
import { type BenchOptions, wantedQemus } from './options.js'
import { farfault, qemuPreemptSource, qemuSource, type SourceKind } from './sources.js'
import { forgetVm, lazily, type StoredVm, storeVm } from './stored-vm.js'
import { WORKLOADS, type Workload, workloadOptions } from './workloads.js'

const MiB = 2 ** 20
const RAM_MIB = 1024
/** Bytes a second where it is limited. */
const LIMIT = 10 * MiB

/** One line for each way to serve; all are compared with the last. */
const SOURCES: Readonly<Record<string, SourceKind>> = {
  'farfault, no record': farfault({ record: false }),
  // Compares no checksums: a QEMU has none.
  'farfault, unchecked': farfault({ record: false, verify: false }),
  // Runs as all others do: where there is no right to go first.
  'farfault, no real time': farfault({ record: false, realTime: false }),
  'farfault, one connection': farfault({ record: false, preempt: false }),
  'farfault, linear': farfault({ order: 'linear', record: false }),
  'farfault, bubbling': farfault({ order: 'bubbling', record: false }),
  'farfault, recorded': farfault({}, 'recorded'),
  // All of the record goes before the guest runs: it runs later.
  'farfault, recorded ahead': farfault({ aheadMs: 1000 }, 'recorded'),
  'qemu, preempt': qemuPreemptSource,
  qemu: qemuSource,
}
const [COMPARED] = Object.keys(SOURCES).slice(-1) as [string]

interface Plan {
  readonly name: string
  readonly about: string
  readonly work: Workload
  readonly metrics: readonly Metric[]
  run(vm: StoredVm, kind: SourceKind): Promise<Sample>
}

function benchmark(binary: QemuBinary, ramMiB: number, plan: Plan): Benchmark {
  const vm = lazily(() => storeVm(binary, workloadOptions(plan.work, ramMiB)), forgetVm)
  const names = Object.keys(SOURCES)
  return {
    name: `${plan.name}, QEMU ${binary.version}`,
    about: `a VM with ${ramMiB} MiB comes to a QEMU by postcopy: ${plan.about}`,
    rounds: 7,
    metrics: plan.metrics,
    variants: names.map((name) => ({ name, run: async () => plan.run(await vm.get(), SOURCES[name]!) })),
    ratios: names.filter((name) => name.startsWith('farfault')).map((name) => [name, COMPARED] as const),
    finish: vm.end,
  }
}

const serving = (work: Workload): Plan => ({
  name: `serve ${work}`,
  about: `the guest "${work}" runs`,
  work,
  metrics: [...GUEST_METRICS, ...ARRIVAL_METRICS],
  run: (vm, kind) => arriveRunning(vm, kind, 0),
})

const SERVING_LIMITED: Plan = {
  ...serving('kv'),
  name: 'serve-limited kv',
  about: `the guest "kv" runs; for 5 s at most ${LIMIT / MiB} MiB/s of what nobody asked for`,
  metrics: GUEST_METRICS,
  run: (vm, kind) => arriveRunning(vm, kind, LIMIT),
}

const RESIDENT: Plan = {
  name: 'resident',
  about: 'the guest stands still',
  work: 'idle',
  metrics: ARRIVAL_METRICS,
  run: arrivePaused,
}

const ALL = Object.keys(WORKLOADS) as Workload[]
const family =
  (plans: (options: BenchOptions) => readonly Plan[]) =>
  (options: BenchOptions): readonly Benchmark[] => {
    const [ramMiB = RAM_MIB] = options.ramMiB
    return wantedQemus(options).flatMap((binary) =>
      plans(options).map((plan) => benchmark(binary, ramMiB, plan)),
    )
  }

export const serve = family(({ guests }) =>
  ALL.filter((work) => guests.length === 0 || guests.includes(work)).map(serving),
)
export const serveLimited = family(() => [SERVING_LIMITED])
export const resident = family(() => [RESIDENT])
