// kill -9 of any process at random moments: the others end by themselves, soon, and say why. Nothing stays behind.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { allGone, farfault, receiver, SLOW_TRANSFER } from './farfault.js'

const TRIALS = 10
/** The limit is 2 s; the rest is for a busy machine to notice. */
const END_MS_MAX = 2000
const LATEST_KILL_MS = 1200

const limit = { timeout: 60_000 }

/** Spread over the transfer, and different in each run. */
const killMoments = (): number[] =>
  Array.from({ length: TRIALS }, (_, i) => Math.round(((i + Math.random()) * LATEST_KILL_MS) / TRIALS))

async function bothSides(postcopy: string) {
  const { run: destination, uri } = await receiver('--run-for', '200ms')
  const source = farfault('migrate', '--to', uri, '--json', `--postcopy=${postcopy}`, ...SLOW_TRANSFER)
  await destination.says(/a source has connected/)
  return { source, destination }
}

for (const [i, afterMs] of killMoments().entries()) {
  const postcopy = i % 2 === 0 ? 'now' : 'never'

  test(`the receiver dies ${afterMs} ms into --postcopy ${postcopy}`, limit, async () => {
    const { source, destination } = await bothSides(postcopy)
    await sleep(afterMs)
    destination.child.kill('SIGKILL')
    const startMs = performance.now()
    const { code } = await source.ended
    const tookMs = performance.now() - startMs
    assert.ok(tookMs < END_MS_MAX, `the source took ${tookMs} ms`)
    assert.equal(code, 1, source.err)
    const report = JSON.parse(source.out)
    assert.equal(report.ok, false)
    if (report.guest.here) {
      assert.match(report.error, /guest runs on here/)
      assert.match(source.err, /The guest runs on here, \d+ done so far/)
      assert.equal(report.ramCheck.ok, true, report.ramCheck.detail)
    } else {
      assert.match(report.error, /After the switch the connection was lost/)
    }
    if (postcopy === 'never') assert.equal(report.guest.here, true)
    await allGone([source.pid, destination.pid], 500)
  })

  test(`the source dies ${afterMs} ms into --postcopy ${postcopy}`, limit, async () => {
    const { source, destination } = await bothSides(postcopy)
    await sleep(afterMs)
    source.child.kill('SIGKILL')
    const startMs = performance.now()
    const { code } = await destination.ended
    const tookMs = performance.now() - startMs
    assert.ok(tookMs < END_MS_MAX, `the receiver took ${tookMs} ms`)
    assert.equal(code, 1, destination.err)
    const report = JSON.parse(destination.out)
    assert.equal(report.ok, false)
    assert.match(report.error, /connection|closed|reset|ended/i)
    await allGone([source.pid, destination.pid], 500)
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
    await allGone([Number(pids[1]), Number(pids[2])], 500)
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
