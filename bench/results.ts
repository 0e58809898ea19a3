// `node dist/bench/results.js [--check]`: the tables in bench/README.md, from the results that are kept in bench/results. Of
// a benchmark that is there more than once, what was measured last.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import type { Measurement, Ratio } from './benchmark.js'
import type { MachineFacts } from './machine.js'
import { resultRows } from './table.js'

const RESULTS = new URL('../../bench/results/', import.meta.url)
const README = new URL('../../bench/README.md', import.meta.url)
const GENERATED = /(<!-- generated: results -->\n)[\s\S]*?(<!-- end -->)/

type Line = (Measurement | Ratio) & { readonly about: string; readonly machine: MachineFacts }

const lines = readdirSync(RESULTS)
  .sort()
  .flatMap((name) => readFileSync(new URL(name, RESULTS), 'utf8').trimEnd().split('\n'))
  .map((line) => JSON.parse(line) as Line)

function table(benchmark: string): string {
  const all = lines.filter((line) => line.benchmark === benchmark)
  const date = all.reduce((last, { machine }) => (machine.date > last ? machine.date : last), '')
  const latest = all.filter(({ machine }) => machine.date === date)
  const [{ about, machine, values }] = latest as [Line]
  const measurements = latest.filter((line): line is Line & Measurement => 'variant' in line)
  const ratios = latest.filter((line): line is Line & Ratio => 'ratio' in line)
  const [head, ...rows] = resultRows({ measurements, ratios })
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`
  const where = `${machine.cores} cores (${machine.cpu}), Linux ${machine.kernel}, Node ${machine.node}`
  return [
    `**${benchmark}**: ${about}. ${values.length} rounds, ${date.slice(0, 16)}, ${where}, load ${machine.load.toFixed(1)}`,
    '',
    line(head!),
    line(head!.map(() => '---')),
    ...rows.map(line),
  ].join('\n')
}

const benchmarks = [...new Set(lines.map(({ benchmark }) => benchmark))]
const before = readFileSync(README, 'utf8')
const after = before.replace(GENERATED, (_, open, close) => {
  return `${open}${benchmarks.map(table).join('\n\n')}\n${close}`
})
if (process.argv.includes('--check')) {
  if (after !== before) {
    console.error('bench/README.md is not what bench/results says: run node dist/bench/results.js')
    process.exitCode = 1
  }
} else {
  writeFileSync(README, after)
}
