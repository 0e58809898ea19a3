// kill -9 of any process at random moments: the others end by themselves, soon, and say why. Nothing stays behind.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { allGone, farfault, receiver, SLOW_TRANSFER } from './farfault.js'

const TRIALS = 10
/** Not a target: the machine may be slow. On an idle one it is a few hundred. */
const END_MS_MAX = 10_000
const LATEST_KILL_MS = 1200

const limit = { timeout: 180_000 }

/** Spread over the transfer, and different in each run. */
const killMoments = (): number[] =>
  Array.from({ length: TRIALS }, (_, i) => Math.round(((i + Math.random()) * LATEST_KILL_MS) / TRIALS))

async function bothSides(postcopy: string) {
  const { run: destination, uri } = await receiver('--run-for', '200ms')
  const source = farfault('migrate', '--to', uri, '--json', `--postcopy=${postcopy}`, ...SLOW_TRANSFER)
  await destination.says(/a source has connected/)
  return { source, destination }
}

/** Kills one side of a transfer under way; resolves with what the other side made of it. */
async function killOne(victim: 'source' | 'destination', afterMs: number, postcopy: string) {
  const sides = await bothSides(postcopy)
  const survivor = victim === 'source' ? sides.destination : sides.source
  await sleep(afterMs)
  sides[victim].child.kill('SIGKILL')
  const startMs = performance.now()
  const { code } = await survivor.ended
  const tookMs = performance.now() - startMs
  assert.ok(tookMs < END_MS_MAX, `the survivor took ${tookMs} ms`)
  assert.equal(code, 1, survivor.err)
  await allGone([sides.source.pid, sides.destination.pid], 3000)
  const report = JSON.parse(survivor.out)
  assert.equal(report.ok, false)
  return { report, words: survivor.err }
}

async function killReceiver(afterMs: number, postcopy: string): Promise<void> {
  const { report, words } = await killOne('destination', afterMs, postcopy)
  if (report.guest.here) {
    assert.match(report.error, /connection|reset|closed/i)
    assert.match(report.error, /guest runs on here/)
    assert.match(words, /The guest runs on here, \d+ done so far/)
    assert.equal(report.ramCheck.ok, true, report.ramCheck.detail)
  } else {
    assert.match(report.error, /After the switch the guest was the destination's; it is kept stopped here/)
    assert.equal(postcopy, 'now', 'precopy gives no guest away')
  }
}

async function killSource(afterMs: number, postcopy: string): Promise<void> {
  const { report } = await killOne('source', afterMs, postcopy)
  assert.match(report.error, /the connection to the source was lost/)
  assert.match(report.error, /The guest stays at the source|After the switch: the guest here/)
  if (postcopy === 'never') assert.match(report.error, /stays at the source/)
}

for (const [i, afterMs] of killMoments().entries()) {
  const postcopy = i % 2 === 0 ? 'now' : 'never'
  test(`one side dies ${afterMs} ms into --postcopy ${postcopy}`, limit, async () => {
    await Promise.all([killReceiver(afterMs, postcopy), killSource(afterMs, postcopy)])
  })
}

for (const [name, index] of [
  ['the source', 1],
  ['the receiver', 2],
] as const) {
  test(`${name} of a demo dies`, limit, async () => {
    const demo = farfault('demo', '--json', ...SLOW_TRANSFER)
    const pids = await demo.says(/source: process (\d+), receiver: process (\d+)/)
    await sleep(600 + Math.random() * 800)
    process.kill(Number(pids[index]), 'SIGKILL')
    const startMs = performance.now()
    const { code } = await demo.ended
    const tookMs = performance.now() - startMs
    assert.ok(tookMs < END_MS_MAX + 500, `the demo took ${tookMs} ms`)
    assert.equal(code, 1)
    assert.match(JSON.parse(demo.out).problems[0], /was killed by SIGKILL/)
    await allGone([Number(pids[1]), Number(pids[2])], 3000)
  })
}

test('the coordinator of a demo dies, and takes both sides with it', limit, async () => {
  for (const afterMs of [0, 700, 1300]) {
    const demo = farfault('demo', '--json', ...SLOW_TRANSFER)
    const [, source, destination] = await demo.says(/source: process (\d+), receiver: process (\d+)/)
    await sleep(afterMs)
    demo.child.kill('SIGKILL')
    await allGone([Number(source), Number(destination)], END_MS_MAX)
  }
})
