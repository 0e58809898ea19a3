// `npm run bench [-- NAME…]`: runs the benchmarks named, or all. A JSON line for each result as it comes, with the facts
// of the machine; tables for people at the end. No thresholds: machines differ, and a busy one would fail good code.

import { type Benchmark, type Result, runBenchmark } from './benchmark.js'
import { downtime } from './downtime.js'
import { faultService, faultServiceUnpinned } from './fault-service.js'
import { machineFacts } from './machine.js'
import { orders } from './orders.js'
import { parking } from './park.js'
import { place } from './place.js'
import { send } from './send.js'
import { formatTable } from './table.js'

const BENCHMARKS: readonly Benchmark[] = [
  faultService,
  faultServiceUnpinned,
  place,
  send,
  downtime,
  parking,
  orders,
]

function wanted(names: readonly string[]): readonly Benchmark[] {
  for (const name of names) {
    if (BENCHMARKS.some((benchmark) => benchmark.name === name)) continue
    console.error(
      `there is no benchmark "${name}"; there are ${BENCHMARKS.map((each) => each.name).join(', ')}`,
    )
    process.exit(2)
  }
  return names.length === 0 ? BENCHMARKS : BENCHMARKS.filter(({ name }) => names.includes(name))
}

function showProgress(benchmark: Benchmark): (done: number, all: number) => void {
  return (done, all) => {
    if (process.stderr.isTTY) process.stderr.write(`\r${benchmark.name}: run ${done + 1} of ${all} `)
  }
}

const tables: string[] = []
for (const benchmark of wanted(process.argv.slice(2))) {
  const machine = machineFacts()
  const result: Result = await runBenchmark(benchmark, showProgress(benchmark))
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  for (const each of [...result.measurements, ...result.ratios]) {
    console.log(JSON.stringify({ ...each, machine }))
  }
  tables.push(formatTable(benchmark, result))
}
console.log(`\n${tables.join('\n\n')}`)
