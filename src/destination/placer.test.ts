// Pages into real RAM, with the real userfaultfd. RAM is looked at only where every page is there.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { GuestError, HostUnsupportedError, ProtocolError } from '../errors.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { openUserfaultfd, type Userfaultfd } from '../os/userfaultfd.js'
import { numberBlocks } from '../ram/block.js'
import { createStats, statsBytes } from '../stats.js'
import { createBlocktime } from './blocktime.js'
import { createPlacer } from './placer.js'
import { enableNotify } from './prepare.js'
import { allocatePageMaps, bitmapsOver, DESTINATION_STATS } from './shared.js'

const PAGE = 4096
const PAGES = 8

function openOrReason(): Userfaultfd | string {
  try {
    return openUserfaultfd({ features: [] })
  } catch (error) {
    if (error instanceof HostUnsupportedError) return error.message
    throw error
  }
}
const probe = openOrReason()
const skip = typeof probe === 'string' && probe
if (typeof probe !== 'string') probe.close()

interface Bench {
  readonly placer: ReturnType<typeof createPlacer>
  readonly block: ReturnType<typeof numberBlocks>[number]
  readonly received: ReturnType<typeof bitmapsOver>[number]
  readonly requested: ReturnType<typeof bitmapsOver>[number]
  /** Calls of the userfaultfd: pages placed by each. */
  readonly calls: number[]
  /** Content of the page of the receive buffer that page `n` is placed from is n + 1 all over. */
  put(page: number): void
  zero(page: number): void
  /** First byte of each page; unregisters, so that a page that is absent reads as 0. */
  look(): number[]
}

function bench(t: TestContext, watched: boolean): Bench {
  const buffer = mapAnonymous(PAGES * PAGE)
  const ram = mapAnonymous(PAGES * PAGE)
  const [block] = numberBlocks([{ name: 'm', length: ram.length, pageSize: PAGE, address: ram.address }])
  const blocks = [block!]
  const maps = allocatePageMaps(blocks)
  const [received] = bitmapsOver(blocks, maps.received)
  const [requested] = bitmapsOver(blocks, maps.requested)
  const bytes = viewOf(buffer.address, buffer.length)
  for (let i = 0; i < PAGES; i++) bytes.fill(i + 1, i * PAGE, (i + 1) * PAGE)
  const userfaultfd = watched ? openUserfaultfd({ features: [] }) : undefined
  if (userfaultfd !== undefined) enableNotify(blocks, userfaultfd)
  const calls: number[] = []
  const counted = userfaultfd && {
    ...userfaultfd,
    get lastBytes() {
      return userfaultfd.lastBytes
    },
    copy: (to: number, from: number, length: number) => {
      calls.push(length / PAGE)
      return userfaultfd.copy(to, from, length)
    },
    zeropage: (to: number, length: number) => {
      calls.push(length / PAGE)
      return userfaultfd.zeropage(to, length)
    },
  }
  const placer = createPlacer({
    buffer: bytes,
    bufferAddress: buffer.address,
    blocks,
    received: [received!],
    requested: [requested!],
    blocktime: createBlocktime(maps.blocktime),
    stats: createStats(DESTINATION_STATS, new SharedArrayBuffer(statsBytes(DESTINATION_STATS))),
    userfaultfd: counted,
  })
  t.after(() => {
    placer.close()
    userfaultfd?.close()
    buffer.unmap()
    ram.unmap()
  })
  return {
    placer,
    block: block!,
    received: received!,
    requested: requested!,
    calls,
    put: (page) => placer.page(block!, page, page * PAGE, 0),
    zero: (page) => placer.zeroPage(block!, page, 0),
    look() {
      userfaultfd?.unregister(ram.address, ram.length)
      const memory = viewOf(ram.address, ram.length)
      return Array.from({ length: PAGES }, (_, i) => memory[i * PAGE + 17]!)
    },
  }
}

test('neighbours are placed together, and not before they must be', { skip }, (t) => {
  const { placer, received, calls, put, zero, look } = bench(t, true)
  for (const page of [0, 1, 2]) put(page)
  assert.deepEqual([calls.length, received.count()], [0, 0])
  put(5)
  zero(6)
  zero(7)
  placer.flush()
  assert.deepEqual(calls, [3, 1, 2])
  assert.equal(received.count(), 6)
  assert.deepEqual(look(), [1, 2, 3, 0, 0, 6, 0, 0])
})

test('a page that somebody waits for is placed at once after the switch', { skip }, (t) => {
  const { placer, requested, received, calls, put } = bench(t, true)
  placer.enterPostcopy()
  put(0)
  requested.set(1)
  put(1)
  assert.deepEqual(calls, [2])
  assert(received.get(1))
})

test('before the switch a page may come again, also before it was placed; the last one counts', {
  skip,
}, (t) => {
  const { placer, block, put, zero, look } = bench(t, true)
  put(0)
  put(1)
  placer.page(block, 1, 6 * PAGE, 0)
  put(2)
  placer.flush()
  zero(2)
  zero(3)
  placer.flush()
  placer.page(block, 3, 7 * PAGE, 0)
  placer.flush()
  assert.deepEqual(look(), [1, 7, 0, 8, 0, 0, 0, 0])
})

test('after the switch a page that comes again is refused', { skip }, (t) => {
  const { placer, put, zero } = bench(t, true)
  put(4)
  placer.enterPostcopy()
  assert.throws(() => put(4), ProtocolError)
  assert.throws(() => zero(4), ProtocolError)
  put(0)
  assert.throws(() => put(0), ProtocolError)
})

test('with two channels the second copy of a page that was asked for is left out, and of no other', {
  skip,
}, (t) => {
  const { placer, block, requested, put, zero, look } = bench(t, true)
  placer.enterPostcopy()
  placer.takeRepeats()
  requested.set(1)
  put(1)
  placer.page(block, 1, 6 * PAGE, 0)
  zero(1)
  put(2)
  assert.throws(() => put(2), ProtocolError)
  placer.flush()
  assert.deepEqual(look(), [0, 2, 3, 0, 0, 0, 0, 0])
})

test('a delta changes a page that is there, before the switch alone', { skip }, (t) => {
  const { placer, block, put, look } = bench(t, true)
  const delta = Uint8Array.of(17, 1, 99)
  assert.throws(() => placer.delta(block, 0, delta, 0), ProtocolError)
  put(0)
  placer.delta(block, 0, delta, 0)
  placer.enterPostcopy()
  assert.throws(() => placer.delta(block, 0, delta, 0), ProtocolError)
  assert.equal(look()[0], 99)
})

test('a page that was there before it was placed is not trusted', { skip }, (t) => {
  const { placer, received, put } = bench(t, true)
  put(0)
  placer.flush()
  received.clear(0)
  put(0)
  assert.throws(() => placer.flush(), GuestError)
})

test('without a userfaultfd RAM is ordinary memory', (t) => {
  const { placer, put, zero, look } = bench(t, false)
  for (const page of [0, 1, 2]) put(page)
  placer.flush()
  zero(1)
  placer.assertNothingPending(0)
  assert.deepEqual(look(), [1, 0, 3, 0, 0, 0, 0, 0])
})
