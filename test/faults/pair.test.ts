// Our own pair, with a connection that fails, stalls, is slow, or changes what it carries.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  CancelledError,
  ChannelError,
  FarfaultError,
  type GuestHandle,
  migrate,
  receive,
  SystemError,
  startGuest,
} from '../../src/index.js'
import {
  assertMoved,
  assertProgress,
  assertSoundAndEnd,
  MiB,
  type Outcome,
  startPattern,
} from '../engine/guests.js'
import { descriptorsSince, openDescriptors, postcopySkipReason, watchedMappings } from '../engine/host.js'
import { createRandom, type Random, SEEDS } from '../engine/random.js'
import { beginThroughProxy, cutAfterRun, endOf, type PairOptions } from './pair.js'
import type { Action, Fault } from './plan.js'
import { startFaultProxy } from './proxy.js'
import type { RecordKind } from './records.js'

const options = { skip: postcopySkipReason(), timeout: 300_000 }
const BLOCKS = [
  { name: 'a', length: 6 * MiB },
  { name: 'b', length: 1 * MiB },
]
const PAGES = 7 * (MiB / 4096)
/** Slow enough that all of the random points below are in precopy. */
const SLOW: PairOptions = { postcopy: 'auto', downtimeLimitMs: 0, maxBandwidth: 8 * MiB }
const PRECOPY_RECORDS = 1200

const folder = mkdtempSync(join(tmpdir(), 'farfault-faults-'))
const unixPair = { proxy: `unix:${folder}/proxy`, destination: `unix:${folder}/destination` }
const forward = { channel: 'main', direction: 'forward' } as const
const back = { channel: 'main', direction: 'back' } as const

if (options.skip === false) {
  // Once before anything is counted: what stays open after it stays once.
  const guest = await startPattern({ blocks: BLOCKS })
  const outcome = await endOf(await beginThroughProxy(guest, { postcopy: 'now' }))
  await outcome.destination.guest?.destroy()
  await guest.destroy()
}
const descriptors = openDescriptors()
after(async () => {
  rmSync(folder, { recursive: true })
  assert.deepEqual(await descriptorsSince(descriptors), [], 'descriptors left open')
  assert.deepEqual(watchedMappings(), [], 'ranges are still watched')
})

function assertTyped(error: unknown): void {
  assert(error instanceof FarfaultError && !(error instanceof SystemError), String(error))
}

/** The guest is the source's and runs; nothing is left of the other one. */
async function assertStillHere(guest: GuestHandle, { source, destination }: Outcome): Promise<void> {
  assert.equal(source.ok, false)
  assert.equal(source.guestHere, true, source.error)
  assertTyped(source.cause)
  assertTyped(destination.report.cause)
  assert.equal(destination.guest, undefined)
  await assertProgress(guest)
}

async function moveAtLast(guest: GuestHandle, pairOptions: PairOptions): Promise<void> {
  const pair = await beginThroughProxy(guest, pairOptions)
  const moved = assertMoved(await endOf(pair))
  await guest.destroy()
  await assertSoundAndEnd(moved)
  pair.proxy.pages.assertEachPageOnce()
}

/** `times` attempts with the same guest, each ended by a fault; then one that nothing happens to. */
async function failThenMove(pairOptions: PairOptions, faults: readonly Fault[]): Promise<void> {
  const guest = await startPattern({ blocks: BLOCKS, writeRatio: 1 })
  for (const fault of faults) {
    const pair = await beginThroughProxy(guest, { ...pairOptions, plan: [fault] })
    const outcome = await endOf(pair)
    try {
      assert.equal(pair.proxy.fired.length, 1, 'the fault did not happen')
      await assertStillHere(guest, outcome)
    } catch (cause) {
      throw new Error(`${JSON.stringify(fault)}: ${cause}`, { cause })
    }
  }
  await moveAtLast(guest, { ...pairOptions, postcopy: 'now', maxBandwidth: 0 })
}

const randomCut = (random: Random): Action =>
  random.pick([
    { do: 'cut', by: 'rst' },
    { do: 'cut', by: 'fin' },
    { do: 'truncate', bytes: random.integer(4096) },
  ])

const randomCuts = (cases: number): Fault[] =>
  Array.from({ length: cases }, (_, i) => {
    const random = createRandom(SEEDS.first + i)
    return { ...forward, after: random.integer(PRECOPY_RECORDS), action: randomCut(random) }
  })

test('cut at random records of precopy: the guest goes on, and the next attempt succeeds', options, () =>
  failThenMove(SLOW, randomCuts(SEEDS.count(6))),
)

test('the same over unix sockets', options, () =>
  failThenMove({ ...SLOW, listen: unixPair }, randomCuts(SEEDS.count(3))),
)

const KINDS: readonly (readonly [RecordKind, number])[] = [
  ['header', 0],
  ['OPEN_RETURN_PATH', 0],
  ['PING', 0],
  ['POSTCOPY_ADVISE', 0],
  ['ram-start', 0],
  ['PING', 1],
  ['POSTCOPY_RAM_DISCARD', 0],
  ['PING', 2],
]

test('cut at each kind of record up to the switch', options, () =>
  failThenMove(
    { postcopy: 'now' },
    KINDS.map(([kind, after], i) => ({ ...forward, kind, after, action: randomCut(createRandom(i)) })),
  ),
)

test('cut at each answer up to the switch', options, () =>
  failThenMove(
    { postcopy: 'now' },
    [0, 1, 2].map((after) => ({ ...back, kind: 'PONG', after, action: { do: 'cut', by: 'fin' } })),
  ),
)

for (const [name, plan] of Object.entries<readonly Fault[]>({
  'a stall of each direction before and after the switch': [
    { ...forward, after: 40, action: { do: 'stall', ms: 300 } },
    { ...back, after: 1, action: { do: 'stall', ms: 300 } },
    { ...forward, from: 'package', after: 500, action: { do: 'stall', ms: 300 } },
    { ...back, from: 'package', after: 3, action: { do: 'stall', ms: 300 } },
  ],
  'each record arrives later': [
    { ...forward, after: 0, action: { do: 'delay', ms: 5 } },
    { ...back, after: 0, action: { do: 'delay', ms: 5 } },
  ],
})) {
  test(`${name}: all is right in the end`, options, async () => {
    for (const postcopy of ['now', 'auto'] as const) {
      const guest = await startPattern({ blocks: BLOCKS, pagesPerSecond: 4000 })
      const pair = await beginThroughProxy(guest, {
        postcopy,
        plan: postcopy === 'now' ? plan : plan.filter(({ from }) => from !== 'package'),
        downtimeLimitMs: postcopy === 'now' ? 25 : 1000,
      })
      const moved = assertMoved(await endOf(pair))
      await guest.destroy()
      await assertSoundAndEnd(moved)
      pair.proxy.pages.assertEachPageOnce()
      assert(pair.proxy.fired.length > 0)
    }
  })
}

/** Fields, not contents: nothing in the protocol protects those, and only the guest can tell that they are wrong. */
const FIELD_BITS: readonly (readonly [RecordKind, number])[] = [
  ['header', 8 * 60],
  ['POSTCOPY_ADVISE', 8 * 21],
  ['ram-start', 8 * 60],
  ['PING', 8 * 9],
  ['POSTCOPY_RAM_DISCARD', 8 * 30],
  ['PACKAGED', 8 * 9],
  ['ram-part', 8 * 5],
  ['page', 8 * 8],
  ['eos', 8 * 8],
  ['footer', 8 * 5],
  ['ram-end', 8 * 5],
  ['eof', 8],
]
const BACK_BITS: readonly (readonly [RecordKind, number])[] = [
  ['PONG', 8 * 8],
  ['REQ_PAGES_ID', 8 * 18],
  ['REQ_PAGES', 8 * 16],
  ['SHUT', 8 * 8],
]

test('a bit flips in a field: a typed error or RAM as it must be, never wrong RAM', options, async (t) => {
  const cases = SEEDS.count(12)
  let sound = 0
  for (let seed = SEEDS.first; seed < SEEDS.first + cases; seed++) {
    const random = createRandom(seed)
    const line = random.oneIn(3) ? back : forward
    const [kind, bits] = random.pick(line === back ? BACK_BITS : FIELD_BITS)
    const bit = random.integer(bits)
    const after = random.integer(kind === 'page' ? 500 : 1)
    const fault: Fault = { ...line, kind, after, action: { do: 'corrupt', bit } }
    const guest = await startPattern({ blocks: BLOCKS })
    const pair = await beginThroughProxy(guest, { postcopy: 'now', plan: [fault], setupTimeoutMs: 1500 })
    const { source, destination } = await endOf(pair)
    try {
      if (destination.guest !== undefined) {
        sound++
        await assertSoundAndEnd(destination.guest)
      } else {
        assertTyped(destination.report.cause)
        assert(!source.ok || kind === 'SHUT', 'the source believes that all went well')
      }
      if (!source.ok) assertTyped(source.cause)
      assert(!(source.guestHere && destination.guest !== undefined), 'the guest runs twice')
    } catch (cause) {
      throw new Error(`seed ${seed}: ${JSON.stringify(fault)}: ${cause}`, { cause })
    }
    await guest.destroy()
  }
  t.diagnostic(`${cases} cases, ${sound} of them sound all the same`)
})

test('a migration that nothing ends needs no recovery', options, async () => {
  const plan: Fault[] = [{ ...forward, from: 'package', after: 10, action: { do: 'stall', ms: 20 } }]
  await cutAfterRun({ plan, recover: () => assert.fail('nothing was cut') })
})

/** Slow enough that pages are on their way wherever the cut is, in both directions. */
const RECOVERING: Omit<PairOptions, 'plan'> = {
  listen: unixPair,
  recovers: true,
  maxPostcopyBandwidth: 8 * MiB,
}

async function recoverFromCuts(seed: number, cuts: number): Promise<void> {
  const random = createRandom(seed)
  const plan: Fault[] = Array.from({ length: cuts }, (_, connection) => ({
    ...(random.integer(3) === 0 ? back : forward),
    connection,
    from: connection === 0 ? 'loaded' : 'start',
    // Later connections are cut within the recovery itself, or soon after it.
    after: random.integer(connection === 0 ? 600 : 40),
    action:
      random.integer(2) === 0 ? { do: 'cut', by: 'fin' } : { do: 'truncate', bytes: random.integer(4000) },
  }))
  const guest = { blocks: BLOCKS, pagesPerSecond: 20_000, writeRatio: 0.5, initialPages: 1500 }
  try {
    const { destination } = await cutAfterRun({ plan, guest, options: RECOVERING, recover: async () => {} })
    assert.equal(destination.report.status, 'completed')
  } catch (cause) {
    throw new Error(`seed ${seed}: ${JSON.stringify(plan)}: ${cause}`, { cause })
  }
}

/** `CUTS=200` for more by hand. */
const CUTS = Number(process.env.CUTS ?? 8)
const cutting = { ...options, timeout: 240_000 + CUTS * 6_000 }

test('cut at random points after the guest runs there: recovered, each page once', cutting, async () => {
  for (let seed = 1; seed <= CUTS; seed++) await recoverFromCuts(seed, 1)
})

test('cut again within the recovery, twice in a row: recovered', cutting, async () => {
  for (let seed = 1; seed <= Math.ceil(CUTS / 3); seed++) await recoverFromCuts(1000 + seed, 3)
})

/** The guest goes over slowly enough to ask for many pages. */
const TWO_CHANNELS: PairOptions = { postcopy: 'now', urgentChannel: true, maxPostcopyBandwidth: 2 * MiB }
const urgently = { channel: 'preempt', direction: 'forward' } as const

test('requested pages, and requests, have a connection of their own', options, async () => {
  const guest = await startPattern({ blocks: BLOCKS })
  const pair = await beginThroughProxy(guest, TWO_CHANNELS)
  const outcome = await endOf(pair)
  const moved = assertMoved(outcome)
  await guest.destroy()
  await assertSoundAndEnd(moved)
  const [main, urgent, ...others] = pair.proxy.connections
  assert.deepEqual(others, [])
  assert.equal(outcome.source.channels, 2)
  const count = (kinds: readonly RecordKind[], wanted: RecordKind): number =>
    kinds.filter((kind) => kind === wanted).length
  assert(count(urgent!.kinds.forward, 'page') > 20)
  assert(count(urgent!.kinds.back, 'REQ_PAGES') > 20)
  assert.equal(count(main!.kinds.back, 'REQ_PAGES'), 0)
  // Where the link is slow, pages go over both: a destination that has everything may then close before the end of one is read.
  const { forward } = urgent!.kinds
  if (pair.proxy.pages.sent === PAGES || forward.includes('eos'))
    assert.equal(forward.indexOf('eos'), forward.length - 1)
})

test('a page that is slow to come over one connection is taken from the other', options, async () => {
  const guest = await startPattern({ blocks: BLOCKS })
  const plan: Fault[] = [{ ...forward, from: 'package', after: 300, action: { do: 'delay', ms: 50 } }]
  const pair = await beginThroughProxy(guest, { ...TWO_CHANNELS, maxPostcopyBandwidth: 0, plan })
  const moved = assertMoved(await endOf(pair))
  await guest.destroy()
  await assertSoundAndEnd(moved)
})

// Few records go over the first one, where the guest asks for most of its pages before they are pushed.
for (const [what, fault] of [
  ['the second connection', { ...urgently, after: 20 }],
  ['the first of two connections', { ...forward, after: 3 }],
] as const) {
  for (const by of ['rst', 'fin'] as const) {
    test(`${what} is cut by ${by}: recovered, over one`, options, async () => {
      const guest = await startPattern({ blocks: BLOCKS })
      const plan: Fault[] = [{ ...fault, from: 'loaded', action: { do: 'cut', by } }]
      const pair = await beginThroughProxy(guest, {
        ...{ ...TWO_CHANNELS, plan, listen: unixPair, recovers: true },
      })
      const outcome = await endOf(pair)
      const moved = assertMoved(outcome)
      await guest.destroy()
      await assertSoundAndEnd(moved)
      assert.equal(pair.proxy.fired.length, 1)
      assert.equal(outcome.source.channels, 1)
    })
  }
}

/** Alive, connected, and silent: what it has said before the switch is the last that is heard. */
const SILENT: Fault[] = [{ ...back, from: 'package', after: 1, action: { do: 'stall', ms: 20_000 } }]

test('a destination that is silent after the switch is not waited for for ever', options, async () => {
  const guest = await startPattern({ blocks: BLOCKS })
  const pair = await beginThroughProxy(guest, {
    ...{ postcopy: 'now', silenceTimeoutMs: 1000, plan: SILENT },
  })
  const startMs = performance.now()
  const { source, destination } = await endOf(pair)
  assert(performance.now() - startMs < 15_000)
  assert(source.cause instanceof ChannelError, String(source.cause))
  assert.match(source.error!, /said nothing and taken nothing for 1 s: it was awaited to/)
  assert.equal(source.guestHere, false)
  assert.equal(destination.guest, undefined)
  await guest.destroy()
})

test('and is recovered, where that was asked for', options, async () => {
  const guest = await startPattern({ blocks: BLOCKS })
  const pair = await beginThroughProxy(guest, {
    ...{ postcopy: 'now', silenceTimeoutMs: 1000, plan: SILENT, listen: unixPair, recovers: true },
  })
  const moved = assertMoved(await endOf(pair))
  await guest.destroy()
  await assertSoundAndEnd(moved)
  pair.proxy.pages.assertEachPageOnce()
  assert(pair.proxy.connections.length >= 2)
})

test(
  'a guest that has loaded its devices while the connection is lost is waited for all the same',
  options,
  async (t) => {
    const module = new URL('../engine/balloon.fixture.js', import.meta.url)
    const blocks = [{ name: 'm', length: MiB, pageSize: 4096 }]
    const guest = await startGuest({ module, options: { blocks } })
    const incoming = receive({
      listen: unixPair.destination,
      recover: unixPair.destination,
      guest: () => startGuest({ module, options: { blocks, loadMs: 500 } }),
    })
    const plan: Fault[] = [{ ...forward, from: 'package', after: 0, action: { do: 'cut', by: 'fin' } }]
    const proxy = await startFaultProxy({ listen: unixPair.proxy, to: () => incoming.uri, plan })
    t.after(() => proxy.close())
    await guest.start()
    let notes = ''
    incoming.on('guest', (arriving) =>
      arriving.on('output', (bytes) => {
        notes += Buffer.from(bytes).toString()
      }),
    )
    const source = await migrate(guest, { to: proxy.uri, postcopy: 'now' }).done
    assert(source.cause instanceof ChannelError, String(source.cause))
    while (!notes.includes('run')) await sleep(20)
    await sleep(300)
    assert.equal(incoming.status, 'postcopy-paused')
    incoming.cancel()
    assert((await incoming.done).report.cause instanceof CancelledError)
    await guest.destroy()
  },
)
