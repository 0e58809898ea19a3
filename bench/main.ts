// `npm run bench [-- NAME… OPTIONS]`: runs the benchmarks named, or all. A JSON line for each result as it comes, with the
// facts of the machine; tables for people at the end. No thresholds: machines differ, and a busy one would fail good code.

import { appendFileSync } from 'node:fs'
import { type Benchmark, narrow, runBenchmark } from './benchmark.js'
import { downtime } from './downtime.js'
import { faultService, faultServiceUnpinned } from './fault-service.js'
import { live } from './live.js'
import { machineFacts } from './machine.js'
import { type BenchOptions, parseOptions, usage } from './options.js'
import { orders } from './orders.js'
import { parking } from './park.js'
import { place } from './place.js'
import { warmMemory } from './programs.js'
import { resumeFamily } from './resume.js'
import { scale } from './scale.js'
import { send } from './send.js'
import { resident, serve, serveLimited } from './serve.js'
import { formatTable } from './table.js'

/** Some are a family: one for each guest, or for each QEMU. Only what is wanted is made. */
const BENCHMARKS: Readonly<Record<string, (options: BenchOptions) => readonly Benchmark[]>> = {
  'fault-service': () => [faultService],
  'fault-service-unpinned': () => [faultServiceUnpinned],
  place: () => [place],
  send: () => [send],
  downtime: () => [downtime],
  park: () => [parking],
  orders: () => [orders],
  serve,
  'serve-limited': serveLimited,
  resident,
  resume: resumeFamily,
  scale,
  live,
}

function options(): BenchOptions {
  const names = Object.keys(BENCHMARKS)
  try {
    const parsed = parseOptions(process.argv.slice(2))
    if (parsed.help) {
      console.log(usage(names))
      process.exit(0)
    }
    const unknown = parsed.names.find((name) => !names.includes(name))
    if (unknown === undefined) return parsed
    console.error(`there is no benchmark "${unknown}"; there are ${names.join(', ')}`)
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
  }
  process.exit(2)
}

function showProgress(benchmark: Benchmark): (done: number, all: number) => void {
  return (done, all) => {
    if (process.stderr.isTTY) process.stderr.write(`\r${benchmark.name}: run ${done + 1} of ${all} `)
  }
}

/** Each run finds memory that is this machine's already, whoever ran before it. */
function warmed(benchmark: Benchmark): Benchmark {
  const variants = benchmark.variants.map((variant) => ({
    ...variant,
    async run() {
      warmMemory()
      return variant.run()
    },
  }))
  return { ...benchmark, variants }
}

async function run(benchmark: Benchmark, save: string | undefined): Promise<string> {
  const machine = machineFacts()
  const result = await runBenchmark(warmed(benchmark), showProgress(benchmark))
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  const { about } = benchmark
  for (const each of [...result.measurements, ...result.ratios]) {
    const line = JSON.stringify({ ...each, about, machine })
    console.log(line)
    if (save !== undefined) appendFileSync(save, `${line}\n`)
  }
  return formatTable(benchmark, result)
}

const wanted = options()
const tables: string[] = []
for (const [name, make] of Object.entries(BENCHMARKS)) {
  if (wanted.names.length > 0 && !wanted.names.includes(name)) continue
  const chosen = make(wanted).map((benchmark) => narrow(benchmark, wanted))
  for (const benchmark of chosen.filter(({ variants }) => variants.length > 0))
    tables.push(await run(benchmark, wanted.save))
}
console.log(`\n${tables.join('\n\n')}`)
