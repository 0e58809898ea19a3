// Whatever bytes a source sends: a typed error, or RAM exactly as those bytes say; nothing beside it, nothing left over.

import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { FarfaultError, SystemError } from '../../src/errors.js'
import { viewOf } from '../../src/os/mapping.js'
import { type BlockShape, baseStreams } from './base-streams.js'
import {
  HUGE_PAGE_BYTES,
  openDescriptors,
  postcopySkipReason,
  reserveHugePages,
  watchedMappings,
} from './host.js'
import {
  createInThreadDestination,
  type InThreadDestination,
  mapGuardedRam,
  type Outcome,
  type Ram,
} from './in-thread.js'
import { spoil } from './mutations.js'
import { createRandom, eachSeed, type Random, SEEDS } from './random.js'
import { modelOf } from './stream-model.js'

const skip = postcopySkipReason()
const KiB = 1024
const CASE_MS_MAX = 10_000
/** Allocations that a case may leave for the garbage collector, all cases together. */
const GROWTH_BYTES_MAX = 200 * 1024 * KiB
/** The cases must not all die at the first record: so many different ends are seen at least. */
const DIFFERENT_ENDS_MIN = 30

const SMALL: readonly BlockShape[] = [
  { name: 'a', length: 256 * KiB, pageSize: 4096 },
  { name: 'b', length: 64 * KiB, pageSize: 4096 },
]
const HUGE_PAGES = 8
const HUGE: readonly BlockShape[] = [
  { name: 'a', length: HUGE_PAGES * HUGE_PAGE_BYTES, pageSize: HUGE_PAGE_BYTES },
  { name: 'b', length: 64 * KiB, pageSize: 4096 },
]

/** RAM whole, and each page what the stream said last. */
function assertRamIsAsSaid(ram: Ram, stream: Uint8Array): void {
  const model = modelOf(stream)
  assert(model.ended, 'success without the end of the stream')
  for (const block of ram.blocks) {
    const memory = viewOf(block.address, block.length)
    for (let offset = 0; offset < block.length; offset += 4096) {
      const said = model.pages.get(block.name)?.get(offset)
      assert(said !== undefined, `page "${block.name}" + ${offset} never came, and it was called a success`)
      const same = Buffer.compare(memory.subarray(offset, offset + 4096), said) === 0
      assert(same, `page "${block.name}" + ${offset} is not what the stream said`)
    }
  }
}

function assertSound(ram: Ram, destination: InThreadDestination, stream: Uint8Array, outcome: Outcome): void {
  const { error } = outcome
  ram.assertUntouchedBeside()
  assert.deepEqual(destination.escapes, [])
  if (error === undefined) assertRamIsAsSaid(ram, stream.subarray(0, outcome.taken))
  else if (!(error instanceof FarfaultError) || error instanceof SystemError) throw error
}

function oneCase(
  ram: Ram,
  destination: InThreadDestination,
  bases: ReturnType<typeof baseStreams>,
  random: Random,
): string {
  const base = random.pick(bases)
  const { bytes, done } = spoil(
    base.pieces,
    random,
    bases.map(({ pieces }) => pieces),
  )
  const startMs = performance.now()
  const outcome = destination.receive(bytes, random)
  const tookMs = performance.now() - startMs
  try {
    assertSound(ram, destination, bytes, outcome)
    assert(tookMs < CASE_MS_MAX, `took ${tookMs} ms`)
  } catch (cause) {
    throw new Error(`"${base.name}" after ${done.join(', ')}: ${cause}`, { cause })
  }
  return outcome.error === undefined ? 'ok' : (outcome.error as Error).message.replace(/[\d"].*/, '')
}

function manyCases(shapes: readonly BlockShape[], cases: number): Map<string, number> {
  const ram = mapGuardedRam(shapes)
  const destination = createInThreadDestination(ram)
  const bases = baseStreams(shapes)
  const ends = new Map<string, number>()
  const count = (end: string) => ends.set(end, (ends.get(end) ?? 0) + 1)
  try {
    for (const { name, pieces } of bases) {
      const stream = Buffer.concat(pieces)
      const outcome = destination.receive(stream, createRandom(0))
      assert.ifError(outcome.error)
      assert.equal(outcome.taken, stream.length, name)
      assertSound(ram, destination, stream, outcome)
    }
    const descriptors = openDescriptors().length
    const residentBefore = process.memoryUsage.rss()
    eachSeed(cases, (random) => count(oneCase(ram, destination, bases, random)))
    const grown = process.memoryUsage.rss() - residentBefore
    assert(grown < GROWTH_BYTES_MAX, `resident memory grew by ${Math.round(grown / KiB)} KiB`)
    assert.equal(openDescriptors().length, descriptors, 'descriptors left open')
    assert.deepEqual(watchedMappings(), [], 'ranges are still watched')
  } finally {
    destination.close()
    ram.unmap()
  }
  return ends
}

test('hostile streams into RAM of ordinary pages', { skip, timeout: 270_000 }, (t) => {
  const cases = SEEDS.count(9500)
  const ends = manyCases(SMALL, cases)
  if (process.env.FARFAULT_ENDS) console.error(ends)
  t.diagnostic(`${cases} cases, ${ends.get('ok')} of them sound all the same, ${ends.size} different ends`)
  if (cases < 1000) return
  assert(ends.size >= DIFFERENT_ENDS_MIN, `only ${ends.size} different ends`)
  assert(
    (ends.get('ok') ?? 0) > cases / 100,
    'hardly a stream was still sound: nothing is known about success',
  )
})

const pool = skip === false ? reserveHugePages(HUGE_PAGES + 4) : skip
after(() => {
  if (typeof pool !== 'string') pool.release()
})

test('hostile streams into RAM of huge pages', {
  skip: typeof pool === 'string' && pool,
  timeout: 270_000,
}, (t) => {
  const cases = Math.min(SEEDS.count(150), 1000)
  const ends = manyCases(HUGE, cases)
  t.diagnostic(`${cases} cases, ${ends.get('ok')} of them sound all the same, ${ends.size} different ends`)
})
