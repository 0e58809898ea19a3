// A parked VM comes to life in a QEMU: when QEMU says that it runs, and when the guest first says something. farfault's
// ways, against QEMU's own, and against a QEMU whose RAM is a file that is mapped privately. With the file in the page cache,
// and without.

import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { openImage } from '../src/image/image.js'
import type { ResumeOptions } from '../src/index.js'
import { waitForMigration } from '../src/qemu/migration.js'
import type { QemuBinary } from '../test/qemu/find.js'
import { startTestGuest, testGuestArgs } from '../test/qemu/guests.js'
import type { Benchmark, Variant } from './benchmark.js'
import { type BenchOptions, wantedQemus } from './options.js'
import { dropFromCache, readIntoCache } from './process-facts.js'
import { nodeChild, RUN_MS_MAX, runForJson } from './programs.js'
import { farfault, nowhere, type SourceKind } from './sources.js'
import { forgetVm, lazily, prepareToSave, type StoredVm, storeVm } from './stored-vm.js'
import { BEAT, type Workload, workloadOptions } from './workloads.js'

const MiB = 2 ** 20
const RAM_MIB = [256, 1024, 4096]
const WORK: Workload = 'idle'
/** Since when `-incoming file:` and mapped-ram are there, and `memory-backend-file` takes an offset. */
const MAPPED_RAM_SINCE = 9
/** Name of the machine's RAM, and of the memory backend that takes its place. */
const RAM_BLOCK = 'pc.ram'

/** From `migrate-incoming` on, ms. */
export interface ResumeTimes {
  readonly RESUME: number
  readonly output: number
}

interface SavedVm extends StoredVm {
  /** As QEMU saves it through `exec:`. */
  readonly stream: string
  /** Its RAM, and nothing else. */
  readonly flat: string
}

interface Way {
  /** What it reads. */
  readonly file: 'image' | 'recorded' | 'stream' | 'flat'
  /** QEMU's major version. */
  readonly since?: number
  run(vm: SavedVm): Promise<ResumeTimes>
}

/** `farfault resume`, with options. An order is one line more. */
const resumeBy = (
  options: Omit<ResumeOptions, 'command'> = {},
  file: 'image' | 'recorded' = 'image',
): Way => ({
  file,
  since: options.map === true ? MAPPED_RAM_SINCE : 0,
  run(vm) {
    const { binary, options: machine, directory } = vm
    const command = [binary.path, ...testGuestArgs(directory, machine)]
    return runForJson(nodeChild('resume.child', vm[file], JSON.stringify({ ...options, command })))
  },
})

interface Restore {
  readonly capabilities?: readonly string[]
  readonly args?: (vm: SavedVm) => readonly string[]
  /** Who comes to `uri`; unless given, QEMU reads by itself. */
  readonly source?: SourceKind
  uri(vm: SavedVm): string
}

/** A whole restore by precopy: the guest runs when everything is there. */
const restoreBy = (
  file: Way['file'],
  { capabilities = [], args = () => [], source = nowhere, uri }: Restore,
): Way => ({
  file,
  since: capabilities.includes('mapped-ram') ? MAPPED_RAM_SINCE : 0,
  async run(vm) {
    const from = await source(vm, 0)
    const qemu = await startTestGuest(vm.binary, {
      ...vm.options,
      incoming: true,
      capabilities: ['events', ...capabilities],
      args: args(vm),
    })
    try {
      const loaded = qemu.qmp.waitForEvent('MIGRATION', {
        where: ({ status }) => status === 'completed',
        timeoutMs: RUN_MS_MAX,
      })
      const running = qemu.qmp.waitForEvent('RESUME', { timeoutMs: RUN_MS_MAX })
      const startMs = performance.now()
      await qemu.qmp.execute('migrate-incoming', { uri: uri(vm) })
      await from.move(uri(vm))
      await loaded
      await qemu.qmp.execute('cont') // it was stopped when it was saved
      await running
      const RESUME = performance.now() - startMs
      await qemu.waitForOutput(BEAT, { timeoutMs: RUN_MS_MAX })
      return { RESUME, output: performance.now() - startMs }
    } finally {
      await qemu.kill()
      await from.stop()
    }
  },
})

const mapPrivately = ({ flat, options }: SavedVm): string[] => {
  const size = `${options.ramMiB}M`
  const backend = `memory-backend-file,id=${RAM_BLOCK},mem-path=${flat},size=${size},share=off`
  return ['-object', backend, '-machine', `memory-backend=${RAM_BLOCK}`]
}

/** One line for each way. */
const WAYS: Readonly<Record<string, Way>> = {
  'farfault, no record': resumeBy({ record: false }),
  'farfault, linear': resumeBy({ order: 'linear', record: false }),
  'farfault, fault-around': resumeBy({ order: 'fault-around', record: false }),
  'farfault, bubbling': resumeBy({ order: 'bubbling', record: false }),
  'farfault, recorded': resumeBy({}, 'recorded'),
  'farfault --no-push': resumeBy({ push: false, record: false }), // a record would be there for the others
  'farfault --map': resumeBy({ map: true, record: false }), // nor is one made: nobody asks for pages
  'exec:': restoreBy('stream', { uri: ({ stream }) => `exec:cat ${stream}` }),
  'mapped-ram': restoreBy('image', { capabilities: ['mapped-ram'], uri: ({ image }) => `file:${image}` }),
  'mapped-ram, multifd': restoreBy('image', {
    capabilities: ['mapped-ram', 'multifd'],
    uri: ({ image }) => `file:${image}`,
  }),
  'mapped file': restoreBy('flat', {
    args: mapPrivately,
    source: farfault({ mapped: RAM_BLOCK, preempt: false }),
    uri: ({ directory }) => `unix:${join(directory, 'migrate')}`,
  }),
}
const COMPARED = ['exec:', 'mapped-ram', 'mapped file']

/** In both forms; the QEMU that it was saved from is not needed any more. */
async function saveVm(binary: QemuBinary, work: Workload, ramMiB: number): Promise<SavedVm> {
  const vm = await storeVm(binary, workloadOptions(work, ramMiB))
  const { qmp } = vm.qemu
  const stream = join(vm.directory, 'stream')
  await prepareToSave(vm.qemu)
  await qmp.execute('migrate', { uri: `exec:cat > ${stream}` })
  await waitForMigration(qmp, ['completed'], { timeoutMs: RUN_MS_MAX })
  await vm.qemu.quit()
  const flat = join(vm.directory, 'flat')
  copyRam(vm.image, flat)
  return { ...vm, stream, flat }
}

function copyRam(imagePath: string, to: string): void {
  const image = openImage(imagePath)
  const { pagesOffset, length } = image.blocks.find(({ name }) => name === RAM_BLOCK)!
  image.close()
  const blocks = [`skip=${pagesOffset / MiB}`, `count=${length / MiB}`]
  execFileSync('dd', [`if=${imagePath}`, `of=${to}`, 'bs=1M', 'conv=sparse', ...blocks], { stdio: 'ignore' })
  execFileSync('truncate', ['-s', String(length), to])
}

const CACHE = { warm: readIntoCache, cold: dropFromCache } as const
type Cache = keyof typeof CACHE
const CACHES = Object.keys(CACHE) as Cache[]

function benchmark(binary: QemuBinary, work: Workload, ramMiB: number): Benchmark {
  const saved = lazily(() => saveVm(binary, work, ramMiB), forgetVm)
  const major = Number.parseInt(binary.version, 10)
  const ways = Object.entries(WAYS).filter(([, { since = 0 }]) => major >= since)
  const names = ways.map(([name]) => name)
  const variant = (name: string, way: Way, cache: Cache): Variant => ({
    name: `${name}, ${cache}`,
    async run() {
      const vm = await saved.get()
      CACHE[cache](vm[way.file])
      return { ...(await way.run(vm)) }
    },
  })
  const compared = COMPARED.filter((name) => names.includes(name))
  return {
    name: `resume ${work} ${ramMiB} MiB, QEMU ${binary.version}`,
    about: `a parked guest "${work}" with ${ramMiB} MiB that are not zero comes to life`,
    rounds: 7,
    metrics: [
      { name: 'RESUME', unit: 'ms' },
      { name: 'output', unit: 'ms' },
    ],
    variants: CACHES.flatMap((cache) => ways.map(([name, way]) => variant(name, way, cache))),
    ratios: CACHES.flatMap((cache) =>
      names
        .filter((name) => name.startsWith('farfault'))
        .flatMap((name) => compared.map((other) => [`${name}, ${cache}`, `${other}, ${cache}`] as const)),
    ),
    finish: saved.end,
  }
}

export function resumeFamily(options: BenchOptions): readonly Benchmark[] {
  const sizes = options.ramMiB.length === 0 ? RAM_MIB : options.ramMiB
  const works = options.guests.length === 0 ? [WORK] : (options.guests as Workload[])
  return wantedQemus(options).flatMap((binary) =>
    sizes.flatMap((ramMiB) => works.map((work) => benchmark(binary, work, ramMiB))),
  )
}
