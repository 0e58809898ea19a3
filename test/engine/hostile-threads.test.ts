// Hostile peers at the real threads: `receive` ends with a typed error in time, its guest is gone, and nothing is left.

import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  FarfaultError,
  type Incoming,
  type Received,
  receive,
  SystemError,
  startGuest,
} from '../../src/index.js'
import { type BlockShape, baseStreams } from './base-streams.js'
import { upToPackage } from './guests.js'
import { descriptorsSince, openDescriptors, postcopySkipReason, watchedMappings } from './host.js'
import { hostileFor, spoil } from './mutations.js'
import { createRandom, SEEDS } from './random.js'

const skip = postcopySkipReason()
const KiB = 1024
/** Not a target: the machine may be slow. On an idle one it is a few hundred. */
const END_MS_MAX = 10_000
const BLOCKS: readonly BlockShape[] = [
  { name: 'a', length: 256 * KiB, pageSize: 4096 },
  { name: 'b', length: 64 * KiB, pageSize: 4096 },
]
const BASES = baseStreams(BLOCKS)
const stream = (name: string): readonly Uint8Array[] => BASES.find((base) => base.name === name)!.pieces

/** A receiver whose guest reads all of its RAM when it runs, and a raw connection to it. */
async function victim(): Promise<{ incoming: Incoming; socket: Socket }> {
  const incoming = receive({
    listen: 'tcp:127.0.0.1:0',
    guest: (machine, blocks) => startGuest({ module: 'ram', incoming: { machine, blocks } }),
  })
  const socket = connect(Number(incoming.uri.split(':').at(-1)), '127.0.0.1')
  socket.on('error', () => {}) // a reset is what a hostile peer gets
  socket.resume()
  await new Promise((resolve) => socket.once('connect', resolve))
  return { incoming, socket }
}

async function ended(incoming: Incoming): Promise<Received> {
  const late = sleep(END_MS_MAX, undefined, { ref: false }).then(() => assert.fail('has not ended in time'))
  return Promise.race([incoming.done, late])
}

function assertTyped({ report, guest }: Received): void {
  assert.equal(report.ok, false)
  assert.equal(guest, undefined)
  assert(
    report.cause instanceof FarfaultError && !(report.cause instanceof SystemError),
    String(report.cause),
  )
}

/** The first worker and the first userfaultfd open descriptors that stay; they are no leak. */
async function warmUp(): Promise<void> {
  const { incoming, socket } = await victim()
  socket.end(Buffer.concat(stream('postcopy at once')))
  const { guest } = await ended(incoming)
  await guest?.destroy()
}

if (skip === false) await warmUp()
const before = openDescriptors()

after(async () => {
  assert.deepEqual(await descriptorsSince(before), [], 'descriptors left open')
  assert.deepEqual(watchedMappings(), [], 'ranges are still watched')
})

test('spoiled streams', { skip, timeout: 180_000 }, async (t) => {
  const cases = Math.min(SEEDS.count(30), 500)
  let sound = 0
  for (let seed = SEEDS.first; seed < SEEDS.first + cases; seed++) {
    const random = createRandom(seed)
    const { bytes, done } = spoil(
      random.pick(BASES).pieces,
      random,
      BASES.map(({ pieces }) => pieces),
      hostileFor(256 * KiB, 64 * KiB),
    )
    const { incoming, socket } = await victim()
    socket.end(bytes)
    try {
      const received = await ended(incoming)
      if (received.report.ok) sound++
      else assertTyped(received)
      await received.guest?.destroy()
    } catch (cause) {
      throw new Error(`FARFAULT_SEED=${seed} FARFAULT_CASES=1, ${done.join(', ')}: ${cause}`, { cause })
    } finally {
      socket.destroy()
    }
  }
  t.diagnostic(`${cases} cases, ${sound} of them sound all the same`)
})

test('a peer that says nothing, until receiving is cancelled', { skip, timeout: 30_000 }, async () => {
  const { incoming, socket } = await victim()
  await sleep(50)
  incoming.cancel()
  assertTyped(await ended(incoming))
  socket.destroy()
})

test('nobody connects, until receiving is cancelled', { skip, timeout: 30_000 }, async () => {
  const incoming = receive({ listen: 'tcp:127.0.0.1:0', guest: () => assert.fail('no guest was announced') })
  incoming.cancel()
  const received = await ended(incoming)
  assertTyped(received)
  assert.equal(received.report.cause!.name, 'CancelledError')
})

for (const [how, leave] of [
  ['closes', (socket: Socket) => socket.end()],
  ['resets', (socket: Socket) => socket.resetAndDestroy()],
] as const) {
  test(`a peer that ${how} the connection at once`, { skip, timeout: 30_000 }, async () => {
    const { incoming, socket } = await victim()
    leave(socket)
    const received = await ended(incoming)
    assertTyped(received)
    assert.equal(received.report.cause!.name, 'ChannelError')
    socket.destroy()
  })
}

/** Everything up to and with the package: the guest runs, and stalls on its first page. */
async function stalledVictim(): Promise<{ incoming: Incoming; socket: Socket }> {
  const { incoming, socket } = await victim()
  socket.write(upToPackage(BASES))
  while (incoming.stats.requests === 0) await sleep(1)
  return { incoming, socket }
}

test('a peer that never sends what the guest waits for, until receiving is cancelled', {
  skip,
  timeout: 30_000,
}, async () => {
  const { incoming, socket } = await stalledVictim()
  incoming.cancel()
  assertTyped(await ended(incoming))
  socket.destroy()
})

test('nonsense while the guest waits for a page', { skip, timeout: 30_000 }, async () => {
  const { incoming, socket } = await stalledVictim()
  socket.write(Buffer.alloc(100, 0xee))
  const received = await ended(incoming)
  assertTyped(received)
  assert.equal(received.report.cause!.name, 'ProtocolError')
  socket.destroy()
})

test('a peer that asks for answers and reads none does not keep the receiver from ending', {
  skip,
  timeout: 60_000,
}, async () => {
  const { incoming, socket } = await victim()
  socket.pause()
  const [header, openReturnPath, ping] = stream('postcopy at once') as [Uint8Array, Uint8Array, Uint8Array]
  socket.write(Buffer.concat([header, openReturnPath]))
  const pings = Buffer.concat(Array.from({ length: 10_000 }, () => ping))
  for (let i = 0; i < 100; i++) socket.write(pings)
  await sleep(500)
  incoming.cancel()
  assertTyped(await ended(incoming))
  socket.destroy()
})
