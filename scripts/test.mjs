#!/usr/bin/env node
// What `npm test` runs after the build: sets up the test host, runs every compiled test file, lists what was skipped.
//
//   node scripts/test.mjs [part of a path]...        only files whose path has one of these in it
//
// With CI set a skipped test is a failure: otherwise an absent QEMU or kernel feature would look like success.

import { existsSync, readdirSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { run } from 'node:test'
import { spec } from 'node:test/reporters'
import { fileURLToPath } from 'node:url'
import { setup } from './setup-qemu.mjs'

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..')
const DIST = join(ROOT, 'dist')
/**
 * The backstop for one file: a thread that is stalled on a page cannot report, so its whole process is ended.
 * Tests that could hang have shorter limits of their own. The slowest file takes a quarter of it.
 */
const FILE_TIMEOUT_MS = 300_000
/**
 * One file at a time: a guest, a source and a destination already want more than the two cores of a small machine. But what
 * lies beside the code it tests is small, and runs beside the longest one that needs a single core.
 */
const isSmall = (path) => isLong(path) || path.startsWith('src/')
const isLong = (path) => path.startsWith('test/fuzz/')
const SLOWEST_SHOWN = 25

function testFiles(wanted) {
  return readdirSync(DIST, { recursive: true })
    .filter((path) => path.endsWith('.test.js'))
    .filter((path) => wanted.length === 0 || wanted.some((part) => path.includes(part)))
    .filter((path) => existsSync(join(ROOT, path.replace(/\.js$/, '.ts')))) // else left over from an older build
    .sort((a, b) => Number(isLong(b)) - Number(isLong(a)) || (a < b ? -1 : 1))
}

function setUpHost() {
  const startMs = performance.now()
  const { available, missing } = setup((line) => console.log(line))
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1)
  const lacking = Object.keys(missing)
  const names = Object.keys(available).join(', ') || 'nothing'
  console.log(
    `test host ready in ${seconds} s: ${names}${lacking.length > 0 ? `; without ${lacking.join(', ')}` : ''}\n`,
  )
}

/** Adds the failures and skips of the files to `outcome`, and resolves after the report has been printed. */
function runFiles(paths, concurrency, outcome) {
  const files = paths.map((path) => join(DIST, path))
  return new Promise((resolve, reject) => {
    const took = ({ nesting, file, details }) => {
      if (nesting === 0) outcome.millis.set(file, (outcome.millis.get(file) ?? 0) + details.duration_ms)
    }
    const stream = run({ files, concurrency, timeout: FILE_TIMEOUT_MS })
    stream.on('test:fail', took)
    stream.on('test:pass', took)
    stream.on('test:fail', ({ todo }) => {
      if (todo === undefined) outcome.failed += 1
    })
    stream.on('test:pass', ({ name, file, skip }) => {
      if (skip === undefined) return
      const reason = typeof skip === 'string' && skip !== '' ? skip : 'no reason given'
      outcome.skipped.push(`${relative(DIST, file ?? '')}: ${name}: ${reason}`)
    })
    const report = stream.compose(new spec())
    report.on('error', reject)
    report.on('end', resolve)
    report.pipe(process.stdout, { end: false })
  })
}

const files = existsSync(DIST) ? testFiles(process.argv.slice(2)) : []
if (files.length === 0) {
  console.error('no compiled tests found: run npm run build first')
  process.exit(1)
}
setUpHost()
const outcome = { failed: 0, skipped: [], millis: new Map() }
const small = files.filter(isSmall)
const others = files.filter((path) => !isSmall(path))
if (small.length > 0) await runFiles(small, 2, outcome)
if (others.length > 0) await runFiles(others, 1, outcome)
const { failed, skipped, millis } = outcome
const slowest = [...millis].sort((a, b) => b[1] - a[1]).slice(0, files.length > 1 ? SLOWEST_SHOWN : 0)
if (slowest.length > 0) console.log('\nthe slowest files, seconds:')
for (const [file, ms] of slowest)
  console.log(`${(ms / 1000).toFixed(1).padStart(6)}  ${relative(DIST, file)}`)
if (skipped.length > 0) {
  console.log(`\n${skipped.length} skipped:`)
  for (const line of skipped) console.log(`  ${line}`)
}
const skipsFail = Boolean(process.env.CI) && skipped.length > 0
if (skipsFail) console.error('skipped tests are failures when CI is set')
process.exitCode = failed > 0 || skipsFail ? 1 : 0
