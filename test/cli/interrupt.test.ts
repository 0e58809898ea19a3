// ctrl-C at every stage: no process is left stalled, and no guest is lost that could be kept.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { allGone, farfault, receiver, SLOW_TRANSFER } from './farfault.js'

const limit = { timeout: 90_000 }
/** For transfers that are waited for. */
const FASTER = '--max-postcopy-bandwidth=6M'

test('while it waits, a receiver ends at once', limit, async () => {
  const { run } = await receiver()
  run.child.kill('SIGINT')
  const { code } = await run.ended
  assert.equal(code, 130)
  assert.equal(JSON.parse(run.out).ok, false)
})

test('before the guest moves, a source ends at once', limit, async () => {
  const run = farfault('migrate', '--to', 'tcp:127.0.0.1:1', '--after', '60s', '--memory', '16M')
  await run.says(/runs here/)
  run.child.kill('SIGINT')
  assert.equal((await run.ended).code, 130)
})

test('in precopy the source cancels and keeps the guest until the next ctrl-C', limit, async () => {
  const { run: destination, uri } = await receiver()
  const source = farfault('migrate', '--to', uri, '--postcopy=never', ...SLOW_TRANSFER)
  await source.says(/active pass 1/)
  source.child.kill('SIGINT')
  await source.says(/It is kept until ctrl-C/)
  assert.equal((await destination.ended).code, 1)
  assert.equal(source.child.exitCode, null)
  source.child.kill('SIGINT')
  assert.equal((await source.ended).code, 130)
  assert.match(source.out, /RAM check\s+right/)
})

test('in precopy the receiver gives up, and the source keeps the guest', limit, async () => {
  const { run: destination, uri } = await receiver()
  const source = farfault('migrate', '--to', uri, '--postcopy=never', '--json', ...SLOW_TRANSFER)
  await destination.says(/a source has connected/)
  await sleep(500)
  destination.child.kill('SIGINT')
  assert.equal((await destination.ended).code, 130)
  assert.equal((await source.ended).code, 1)
  const { guest, ramCheck } = JSON.parse(source.out)
  assert.equal(guest.here, true)
  assert.equal(ramCheck.ok, true, ramCheck.detail)
})

test('after the switch one ctrl-C on each side loses nothing', limit, async () => {
  const destination = farfault('receive', '--listen', 'tcp:127.0.0.1:0', '--run-for', '200ms')
  const [, uri] = await destination.says(/listening on (\S+)/)
  const source = farfault('migrate', '--to', uri!, '--postcopy=now', ...SLOW_TRANSFER, FASTER)
  await source.says(/postcopy-active/)
  await destination.says(/postcopy-active/)
  source.child.kill('SIGINT')
  destination.child.kill('SIGINT')
  await source.says(/still needs RAM from here/)
  await destination.says(/the transfer is finished first/)
  assert.equal((await source.ended).code, 0, source.out)
  assert.equal((await destination.ended).code, 0, destination.out)
  assert.match(destination.out, /RAM check\s+right/)
})

test('after the switch two of them abandon the guest, and both sides end', limit, async () => {
  for (const which of ['source', 'destination'] as const) {
    const destination = farfault('receive', '--listen', 'tcp:127.0.0.1:0')
    const [, uri] = await destination.says(/listening on (\S+)/)
    const source = farfault('migrate', '--to', uri!, '--postcopy=now', ...SLOW_TRANSFER)
    await Promise.all([source.says(/postcopy-active/), destination.says(/postcopy-active/)])
    const side = { source, destination }[which]
    side.child.kill('SIGINT')
    await side.says(/ctrl-C again/)
    side.child.kill('SIGINT') // the same ctrl-C, passed on by a parent
    await sleep(300)
    assert.equal(side.child.exitCode, null)
    side.child.kill('SIGINT')
    assert.equal((await side.ended).code, 130)
    assert.equal((await (side === source ? destination : source).ended).code, 1)
  }
})

test('SIGUSR1 switches to postcopy', limit, async () => {
  const { run: destination, uri } = await receiver('--run-for', '100ms')
  const source = farfault('migrate', '--to', uri, '--postcopy=auto', '--json', ...SLOW_TRANSFER, FASTER)
  await destination.says(/a source has connected/)
  await sleep(400)
  source.child.kill('SIGUSR1')
  assert.equal((await source.ended).code, 0, source.err)
  assert.equal((await destination.ended).code, 0, destination.err)
  const { mode, switchReason } = JSON.parse(source.out)
  assert.deepEqual({ mode, switchReason }, { mode: 'postcopy', switchReason: 'ordered' })
})

test('a guest that stays can be kept with --keep', limit, async () => {
  const source = farfault('migrate', '--to', 'tcp:127.0.0.1:1', '--keep', '--memory', '16M', '--after', '0')
  await source.says(/It is kept until ctrl-C/)
  await sleep(300)
  assert.equal(source.child.exitCode, null)
  source.child.kill('SIGINT')
  assert.equal((await source.ended).code, 1)
  assert.match(source.out, /RAM check\s+right/)
})

test('a demo ends both of its sides', limit, async () => {
  for (const afterMs of [0, 600, 1200]) {
    const demo = farfault('demo', '--json', ...SLOW_TRANSFER)
    const [, source, destination] = await demo.says(/source: process (\d+), receiver: process (\d+)/)
    await sleep(afterMs)
    demo.child.kill('SIGINT')
    const startMs = performance.now()
    assert.equal((await demo.ended).code, 130)
    assert.ok(performance.now() - startMs < 10_000)
    await allGone([Number(source), Number(destination)], 3000)
  }
})
