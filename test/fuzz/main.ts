// The fuzz harness by hand:
//
//   node dist/test/fuzz/main.js [TARGET...] [--seconds N | --cases N] [--seed S] [--endings]
//
// N is for each target; without it a target runs for 10 seconds. A case is made of its seed alone: S, S + 1, …
// A failure prints its seed and the command that repeats it. --endings lists every kind of ending, not only the commonest.

import { parseArgs } from 'node:util'
import { type RunReport, runTarget } from './run.js'
import { TARGETS } from './targets.js'

const SECONDS_DEFAULT = 10
const ENDINGS_SHOWN = 6

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string' },
    cases: { type: 'string' },
    seed: { type: 'string', default: '1' },
    endings: { type: 'boolean', default: false },
  },
})

function number(name: string, text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 0) usage(`--${name} is a whole number, not "${text}"`)
  return value
}

function usage(problem: string): never {
  console.error(`${problem}\ntargets: ${TARGETS.map(({ name }) => name).join(', ')}`)
  process.exit(2)
}

function print(report: RunReport): void {
  const { target, firstSeed, cases, casesPerSecond, endings, rssMiB } = report
  const seeds = `seeds ${firstSeed} to ${firstSeed + cases - 1}`
  console.log(
    `${target}: ${cases} cases, ${casesPerSecond}/s, RSS ${rssMiB.start} to ${rssMiB.end} MiB (at most ${rssMiB.most}), ${seeds}`,
  )
  const shown = [...endings].slice(0, values.endings ? endings.size : ENDINGS_SHOWN)
  for (const [kind, count] of shown) console.log(`  ${count.toString().padStart(8)} ${kind}`)
  if (endings.size > shown.length) console.log(`           and ${endings.size - shown.length} other kinds`)
}

const unknown = positionals.find((name) => !TARGETS.some((target) => target.name === name))
if (unknown !== undefined) usage(`there is no target "${unknown}"`)
const firstSeed = number('seed', values.seed)
const bound =
  values.cases === undefined
    ? { seconds: number('seconds', values.seconds ?? `${SECONDS_DEFAULT}`) }
    : { cases: number('cases', values.cases) }

let failed = false
for (const target of TARGETS) {
  if (positionals.length > 0 && !positionals.includes(target.name)) continue
  if (target.skip !== false) {
    console.log(`${target.name}: skipped: ${target.skip}`)
    continue
  }
  try {
    print(await runTarget(target, { firstSeed, ...bound }))
  } catch (error) {
    failed = true
    console.error(error)
  }
}
process.exitCode = failed ? 1 : 0
