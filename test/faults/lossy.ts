// A migration of our own pair over a link with delay and loss, and how long faults take there:
//
//   unshare --net node dist/test/faults/lossy.js [--delay-ms 10] [--loss 1] [--mib 8] [--seed 1] [--congestion reno]
//     [--bandwidth BYTES] [--channels 1] [--dead-after-ms MS]
//
// With --dead-after-ms the link loses everything so long after the switch, and what is printed is when each end noticed. It changes the network of its namespace, so it refuses one that has more than a loopback device. Prints a JSON line.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { Worker } from 'node:worker_threads'
import { migrate, receive, startGuest } from '../../src/index.js'
import { assertMoved, assertSoundAndEnd, MiB, outcomeOf, startPattern } from '../engine/guests.js'
import type { LinkThreadData } from './link-thread.js'

const DEVICE = 'lossy0'
const OURS = '10.98.0.1'
const THEIRS = '10.98.0.2'

const { values } = parseArgs({
  options: {
    'delay-ms': { type: 'string', default: '10' },
    loss: { type: 'string', default: '1' },
    mib: { type: 'string', default: '8' },
    seed: { type: 'string', default: '1' },
    congestion: { type: 'string' },
    /** Of the push, bytes a second. */
    bandwidth: { type: 'string', default: '0' },
    channels: { type: 'string', default: '2' },
    'dead-after-ms': { type: 'string' },
  },
})

function ip(...args: string[]): void {
  const { status, stderr, error } = spawnSync('ip', args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`ip ${args.join(' ')}: ${error?.message ?? stderr}`)
}

const devices = readdirSync('/proc/sys/net/ipv4/conf').filter(
  (name) => !['all', 'default', 'lo'].includes(name),
)
assert.deepEqual(devices, [], 'not in a network namespace of its own: start it with unshare --net')
if (values.congestion !== undefined)
  writeFileSync('/proc/sys/net/ipv4/tcp_congestion_control', values.congestion)

const cells = new Int32Array(new SharedArrayBuffer(16))
const data: LinkThreadData = {
  device: DEVICE,
  delayMs: Number(values['delay-ms']),
  lossPercent: Number(values.loss),
  seed: Number(values.seed),
  cells,
}
const link = new Worker(new URL('./link-thread.js', import.meta.url), { workerData: data })
const broken = new Promise<never>((_, reject) => link.once('error', reject))
const up = async (): Promise<void> => {
  while (Atomics.load(cells, 1) === 0) await new Promise((resolve) => setTimeout(resolve, 5))
}
await Promise.race([up(), broken])
ip('link', 'set', 'lo', 'up')
ip('addr', 'add', OURS, 'peer', THEIRS, 'dev', DEVICE)
ip('link', 'set', DEVICE, 'up')

/** Both ends end; prints with which words, and how long after the link has died. */
async function reportDeath(afterMs: number): Promise<never> {
  while (migration.status !== 'postcopy-active') await new Promise((resolve) => setTimeout(resolve, 5))
  await new Promise((resolve) => setTimeout(resolve, afterMs))
  Atomics.store(cells, 0, 2)
  const diedMs = performance.now()
  const noticed = async (end: Promise<{ status: string; error?: string }>) => {
    const { status, error } = await end
    return { status, error, afterMs: Math.round(performance.now() - diedMs) }
  }
  const [source, destination] = await Promise.all([
    noticed(migration.done),
    noticed(incoming.done.then(({ report }) => report)),
  ])
  console.log(JSON.stringify({ source, destination }))
  process.exit(0)
}

const guest = await startPattern({
  blocks: [{ name: 'a', length: Number(values.mib) * MiB }],
  writeRatio: 0.2,
})
const incoming = receive({
  listen: `tcp:${OURS}:0`,
  insecure: true, // in a network namespace of its own
  guest: (machine, blocks) => startGuest({ module: 'pattern', incoming: { machine, blocks } }),
})
const startMs = performance.now()
const migration = migrate(guest, {
  to: incoming.uri.replace(OURS, THEIRS),
  postcopy: 'now',
  maxPostcopyBandwidth: Number(values.bandwidth),
  urgentChannel: values.channels === '2',
})
if (values['dead-after-ms'] !== undefined) await reportDeath(Number(values['dead-after-ms']))
const outcome = await Promise.race([outcomeOf({ incoming, migration }), broken])
const moved = assertMoved(outcome)
await guest.destroy()
await assertSoundAndEnd(moved)
const { faults, faultLatencyUs, faultHistogramUs, downtimeMs, bytes } = outcome.destination.report
const ms = (us: number): number => Math.round(us / 100) / 10
console.log(
  JSON.stringify({
    ...values,
    packets: cells[2],
    lost: cells[3],
    faults,
    faultMs: { p50: ms(faultLatencyUs.p50), p99: ms(faultLatencyUs.p99), max: ms(faultLatencyUs.max) },
    faultHistogramUs,
    downtimeMs,
    totalMs: Math.round(performance.now() - startMs),
    bytes,
  }),
)
Atomics.store(cells, 0, 1)
