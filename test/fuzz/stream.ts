// Whatever bytes a source sends: a typed error, or RAM exactly as those bytes say; nothing beside it, nothing left over.
// The whole incoming half of the engine, in one thread.

import assert from 'node:assert/strict'
import { viewOf } from '../../src/os/mapping.js'
import { type BlockShape, baseStreams } from '../engine/base-streams.js'
import {
  HUGE_PAGE_BYTES,
  openDescriptors,
  postcopySkipReason,
  reserveHugePages,
  watchedMappings,
} from '../engine/host.js'
import {
  createInThreadDestination,
  type InThreadDestination,
  mapGuardedRam,
  type Outcome,
  type Ram,
} from '../engine/in-thread.js'
import { hostileFor, spoil } from '../engine/mutations.js'
import { createRandom } from '../engine/random.js'
import { modelOf } from '../engine/stream-model.js'
import { assertTyped, type Ending, type OpenTarget, type Target } from './target.js'

const KiB = 1024
const HUGE_PAGES = 8

const ordinary = (a: number, b: number): readonly BlockShape[] => [
  { name: 'a', length: a, pageSize: 4096 },
  { name: 'b', length: b, pageSize: 4096 },
]
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

function endingOf(ram: Ram, destination: InThreadDestination, stream: Uint8Array, outcome: Outcome): Ending {
  ram.assertUntouchedBeside()
  assert.deepEqual(destination.escapes, [])
  if (outcome.error !== undefined) return assertTyped(outcome.error)
  assertRamIsAsSaid(ram, stream.subarray(0, outcome.taken))
  return 'sound'
}

function openStreamTarget(shapes: readonly BlockShape[]): OpenTarget {
  const ram = mapGuardedRam(shapes)
  const destination = createInThreadDestination(ram)
  const bases = baseStreams(shapes)
  const pieces = bases.map((base) => base.pieces)
  const hostile = hostileFor(shapes[0]!.length, shapes[1]!.length)
  for (const base of bases) {
    const stream = Buffer.concat(base.pieces)
    const outcome = destination.receive(stream, createRandom(0))
    assert.equal(endingOf(ram, destination, stream, outcome), 'sound', base.name)
    assert.equal(outcome.taken, stream.length, base.name)
  }
  const descriptors = openDescriptors().length
  return {
    run(random) {
      const base = random.pick(bases)
      const { bytes, done } = spoil(base.pieces, random, pieces, hostile)
      const outcome = destination.receive(bytes, random)
      try {
        return endingOf(ram, destination, bytes, outcome)
      } catch (cause) {
        throw new Error(`"${base.name}" after ${done.join(', ')}: ${cause}`, { cause })
      }
    },
    close() {
      assert.equal(openDescriptors().length, descriptors, 'descriptors left open')
      assert.deepEqual(watchedMappings(), [], 'ranges are still watched')
      destination.close()
      ram.unmap()
    },
  }
}

const skip = postcopySkipReason()

export const stream: Target = {
  name: 'stream',
  skip,
  share: 4,
  open: () => openStreamTarget(ordinary(64 * KiB, 16 * KiB)),
}

/** RAM of more pages than are joined into one placement. */
export const streamLarge: Target = {
  name: 'stream-large',
  skip,
  share: 2,
  open: () => openStreamTarget(ordinary(512 * KiB, 64 * KiB)),
}

export const streamHuge: Target = {
  name: 'stream-huge',
  skip: skip === false ? hugeSkipReason() : skip,
  share: 2,
  open() {
    const pool = reserveHugePages(HUGE_PAGES + 4)
    assert(typeof pool !== 'string', String(pool))
    const target = openStreamTarget(HUGE)
    return {
      run: target.run,
      close() {
        target.close()
        pool.release()
      },
    }
  },
}

function hugeSkipReason(): string | false {
  const pool = reserveHugePages(HUGE_PAGES + 4)
  if (typeof pool === 'string') return pool
  pool.release()
  return false
}
