import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { UsageError } from '../errors.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { numberBlocks, RUN_PAGES } from '../ram/block.js'
import { chooseOrder, ORDER_NAMES, type OrderName, orderSpec } from './orders.js'
import { createPageOrder, type PageOrder, type PageOrderParts } from './page-order.js'

const MiB = 1024 * 1024

type MayRepeat = NonNullable<PageOrderParts['mayRepeat']>

function setUp(
  whole: boolean,
  name: OrderName = 'linear',
  recorded?: Uint32Array,
  mayRepeat: MayRepeat = () => false,
) {
  const blocks = numberBlocks([
    { name: 'a', length: 64 * 4096, pageSize: 4096, address: 0x10_0000 },
    { name: 'b', length: 4 * MiB, pageSize: 2 * MiB, address: 0x4000_0000 },
    { name: 'c', length: 40 * 4096, pageSize: 4096, address: 0x20_0000 },
  ])
  const dirty = blocks.map((block) => createBitmap(block.pages))
  const background = blocks.map((block) => createBitmap(block.pages))
  const order = createPageOrder({
    ...{ spec: orderSpec(name, 16), blocks, dirty, background, recorded },
    wholeHostPages: () => whole,
    mayRepeat,
  })
  /** Dirty; only requests and records lead to zero pages. */
  function fill(block: number, start: number, end: number, zero = false): void {
    dirty[block]!.setRange(start, end)
    if (!zero) background[block]!.setRange(start, end)
  }
  return { blocks, dirty, background, order, fill }
}

test('a requested page wins, and the scan goes on behind it', () => {
  const { fill, order } = setUp(false)
  fill(1, 0, 200)
  assert.ok(order.nextScanned(70))
  assert.deepEqual([order.pick.page, order.pick.pages], [0, 70])
  order.request(1, 140, 1)
  assert.ok(order.nextRequested())
  assert.deepEqual({ ...order.pick }, { blockIndex: 1, page: 140, pages: 1, reason: 'requested' })
  assert.equal(order.nextRequested(), false)
  assert.ok(order.nextScanned())
  assert.equal(order.pick.page, 141)
})

test('a request for a page that is not dirty is dropped', () => {
  const { fill, order } = setUp(false)
  fill(0, 3, 4)
  order.request(0, 2, 1)
  order.request(0, 3, 1)
  order.request(0, 3, 1)
  assert.ok(order.nextRequested())
  assert.equal(order.pick.page, 3)
  assert.equal(order.nextRequested(), false)
  assert.equal(order.queued(), 0)
})

test('a page that was sent goes once more where that is allowed, and the scan stays where it is', () => {
  const asked: number[] = []
  const { fill, order } = setUp(true, 'linear', undefined, (_, page) => asked.push(page) === 1)
  fill(0, 0, 9)
  fill(0, 10, 11)
  assert.ok(order.nextScanned())
  order.request(0, 0, 1)
  order.request(0, 0, 1)
  assert.ok(order.nextRequested())
  assert.deepEqual({ ...order.pick }, { blockIndex: 0, page: 0, pages: 1, reason: 'repeated' })
  assert.equal(order.nextRequested(), false)
  assert.deepEqual(asked, [0, 0])
  assert.ok(order.nextScanned())
  assert.deepEqual({ ...order.pick }, { blockIndex: 0, page: 10, pages: 1, reason: 'scanned' })
})

test('after the switch a huge page goes whole, whichever of its target pages was asked for', () => {
  const { dirty, fill, order } = setUp(true)
  fill(1, 0, 1024)
  order.request(1, 700, 1)
  assert.ok(order.nextRequested())
  assert.deepEqual({ ...order.pick }, { blockIndex: 1, page: 512, pages: 512, reason: 'requested' })
  assert.equal(dirty[1]!.count(), 512)
})

const steps = fc.array(
  fc.record({
    block: fc.nat(2),
    page: fc.nat(39),
    pages: fc.integer({ min: 1, max: 9 }),
    likely: fc.nat(30),
    scanned: fc.nat(30),
  }),
  { maxLength: 40 },
)
const spans = fc.array(
  fc.record({ block: fc.nat(2), start: fc.nat(63), length: fc.nat(20), zero: fc.boolean() }),
)
const record = fc.array(fc.nat(64 + 1024 + 40 + 5), { maxLength: 60 })

for (const name of ORDER_NAMES) {
  test(`${name}: every dirty page is taken exactly once, requested ones first`, () => {
    fc.assert(
      fc.property(steps, spans, record, fc.boolean(), (list, dirtySpans, recorded, all) => {
        const { blocks, dirty, background, order, fill } = setUp(true, name, Uint32Array.from(recorded))
        if (all) for (const { index, pages } of blocks) fill(index, 0, pages)
        for (const { block, start, length, zero } of dirtySpans) {
          const end = Math.min(start + length, blocks[block]!.pages)
          if (block !== 1 && !all) fill(block, Math.min(start, end), end, zero)
        }
        const total = (bitmaps: readonly Bitmap[]) => bitmaps.reduce((sum, bitmap) => sum + bitmap.count(), 0)
        const before = total(dirty)
        const taken = new Set<string>()
        const take = (): void => {
          const { blockIndex, page, pages } = order.pick
          const group = Math.max(RUN_PAGES, blocks[blockIndex]!.ratio)
          assert.equal(Math.floor(page / group), Math.floor((page + pages - 1) / group), 'no more than a run')
          for (let p = page; p < page + pages; p++) {
            assert.ok(!taken.has(`${blockIndex}:${p}`), 'taken twice')
            taken.add(`${blockIndex}:${p}`)
            assert.ok(!dirty[blockIndex]!.get(p) && !background[blockIndex]!.get(p))
          }
        }
        const drain = (next: () => boolean, most: number): void => {
          for (let i = 0; i < most && next(); i++) take()
        }
        for (const { block, page, pages, likely, scanned } of list) {
          const asked = Math.min(pages, blocks[block]!.pages - page)
          const want = dirty[block]!.nextSet(page, page + asked)
          assert.ok(order.request(block, page, asked))
          assert.equal(order.nextRequested(), want >= 0)
          if (want >= 0) {
            const { pick } = order
            assert.equal(pick.reason, 'requested')
            assert.equal(pick.blockIndex, block)
            assert.ok(pick.page <= want && want < pick.page + pick.pages, 'what was asked for goes first')
            take()
          }
          drain(order.nextRequested, Number.POSITIVE_INFINITY)
          assert.equal(order.queued(), 0)
          if (likely > 0) drain(order.nextNear, Number.POSITIVE_INFINITY)
          drain(order.nextLikely, likely)
          drain(order.nextScanned, scanned)
        }
        drain(order.nextLikely, Number.POSITIVE_INFINITY)
        drain(order.nextScanned, Number.POSITIVE_INFINITY)
        assert.equal(order.anyScanned() || order.anyLikely(), false)
        assert.equal(total(background), 0, 'nothing is forgotten')
        assert.equal(taken.size, before - total(dirty))
      }),
      { numRuns: 200 },
    )
  })
}

const picks = (next: () => boolean, { pick }: PageOrder, most = 1000): number[] => {
  const pages: number[] = []
  while (pages.length < most && next()) pages.push(...upTo(pick.page, pick.page + pick.pages))
  return pages
}
const upTo = (start: number, end: number): number[] =>
  Array.from({ length: end - start }, (_, i) => start + i)

test('fault-around: the demanded page alone, then the rest of its group, zero ones, too; the scan leaves those out', () => {
  const { fill, order } = setUp(false, 'fault-around')
  fill(0, 0, 64)
  fill(2, 0, 40, true)
  order.request(0, 20, 1)
  order.request(2, 3, 1)
  assert.deepEqual(picks(order.nextRequested, order), [20, 3])
  assert.deepEqual(picks(order.nextLikely, order), [
    ...[...upTo(4, 16), ...upTo(0, 3)],
    ...[...upTo(21, 32), ...upTo(16, 20)],
  ])
  assert.deepEqual(picks(order.nextScanned, order, 2), upTo(0, 16), 'on from the last request, and round')
})

test('fault-around: the group of the latest request goes first, and the end of a block ends it', () => {
  const { fill, order } = setUp(false, 'fault-around')
  fill(0, 0, 64)
  fill(2, 0, 40)
  order.request(0, 0, 1)
  order.request(2, 33, 1)
  assert.deepEqual(picks(order.nextRequested, order), [0, 33])
  assert.deepEqual(picks(order.nextLikely, order), [...upTo(34, 40), 32, ...upTo(1, 16)])
})

test('fault-around: what may be wanted at once goes along with the demanded page, once, and not again', () => {
  const { fill, order } = setUp(false, 'fault-around')
  fill(1, 0, 26)
  fill(1, 28, 64)
  order.request(1, 20, 1)
  assert.equal(order.nextNear(), false)
  assert.deepEqual(picks(order.nextRequested, order), [20])
  assert.deepEqual(picks(order.nextNear, order), [...upTo(21, 26), ...upTo(28, 32), ...upTo(16, 20)])
  assert.equal(order.pick.reason, 'likely')
  assert.equal(order.nextLikely(), false)
  fill(1, 16, 32)
  assert.equal(order.nextNear(), false)
  order.request(1, 47, 1)
  assert.deepEqual(picks(order.nextRequested, order), [47])
  assert.deepEqual(picks(order.nextNear, order), upTo(32, 47))
})

test('where a demanded page comes alone, nothing goes along with it', () => {
  for (const name of ['linear', 'bubbling', 'recorded'] as const) {
    const { fill, order } = setUp(false, name, Uint32Array.of(3))
    fill(0, 0, 64)
    order.request(0, 20, 1)
    assert.ok(order.nextRequested())
    assert.equal(order.nextNear(), false)
  }
})

test('fault-around: who goes through memory is brought twice as much each time, up to a bound; others are not', () => {
  const { fill, order } = setUp(false, 'fault-around')
  fill(1, 0, 1024)
  const brought = (page: number): number => {
    order.request(1, page, 1)
    assert.ok(order.nextRequested())
    return 1 + picks(order.nextLikely, order).length
  }
  assert.equal(brought(0), 16)
  assert.equal(brought(800), 16, 'far from there: another way')
  assert.equal(brought(16), 32, 'the first goes on')
  assert.equal(brought(48 + 20), 64 - 16 + 16, 'and on, though a group was left out')
  assert.equal(brought(128), 128)
  assert.equal(brought(256), 256)
  assert.equal(brought(816), 32, 'the other one goes on as well')
  assert.equal(brought(512), 256, 'that is the bound')
})

test('fault-around: who goes down through memory is followed as well, what is nearest first', () => {
  const { fill, order } = setUp(false, 'fault-around')
  fill(1, 0, 1024)
  const brought = (page: number): number[] => {
    order.request(1, page, 1)
    assert.ok(order.nextRequested())
    return picks(order.nextLikely, order)
  }
  assert.deepEqual(brought(511), upTo(496, 511))
  assert.deepEqual(brought(495), [...upTo(480, 495), ...upTo(464, 480)])
  assert.deepEqual(brought(450), [
    ...[...upTo(451, 464), ...upTo(448, 450), ...upTo(432, 448)],
    ...[...upTo(416, 432), ...upTo(400, 416)],
  ])
  assert.equal(brought(30).length, 31 - 16, 'far from there: another way')
  assert.equal(brought(3).length, 15, 'down to the first page')
})

test('fault-around: who has asked for many pages is brought more for each', () => {
  const { fill, order } = setUp(false, 'fault-around')
  const brought = (page: number): number => {
    fill(1, 0, 1024)
    order.request(1, page, 1)
    assert.ok(order.nextRequested())
    return 1 + picks(order.nextLikely, order).length
  }
  const first = Array.from({ length: 64 }, (_, i) => (i % 2) * 500 + 50)
  assert.deepEqual(first.map(brought), Array(64).fill(16))
  assert.deepEqual([800, 100].map(brought), [64, 64], 'far from there, and where the first went on')
  assert.equal(brought(840), 128, 'and it goes on from there')
})

test('fault-around: a page that was to come and is asked for brings the rest of what was to come', () => {
  const { fill, order } = setUp(false, 'fault-around')
  fill(1, 0, 1024)
  for (const page of [0, 16, 100]) order.request(1, page, 1) // the second brings those up to 47
  assert.deepEqual(picks(order.nextRequested, order), [0, 16, 100])
  assert.deepEqual(picks(order.nextLikely, order, 11), upTo(101, 112), 'of another way')
  order.request(1, 32, 1)
  assert.deepEqual(picks(order.nextRequested, order), [32])
  assert.deepEqual(picks(order.nextLikely, order, 15), upTo(33, 48))
})

test('bubbling goes outward, both ways, from each request by turns', () => {
  const { fill, order } = setUp(false, 'bubbling')
  fill(1, 0, 1024)
  order.request(1, 100, 1)
  order.request(1, 800, 1)
  assert.deepEqual(picks(order.nextRequested, order), [100, 800])
  assert.equal(order.nextLikely(), false)
  const first = picks(order.nextScanned, order, 63)
  assert.deepEqual(first.slice(0, 31), upTo(801, 832), 'up from the latest, to the end of the run')
  assert.deepEqual(first.slice(31), upTo(768, 800), 'down from there, to its start')
  const rest = picks(order.nextScanned, order)
  assert.equal(rest.length, 1024 - 2 - first.length)
  const far = rest.indexOf(1023)
  assert.ok(rest.indexOf(120) < far && rest.indexOf(90) < far, 'the older one has its turns')
})

test('recorded pages go in their order, zero ones, too; what was sent is left out', () => {
  const { fill, order } = setUp(false, 'recorded', Uint32Array.of(40, 2, 64 + 1024 + 7, 2, 9999, 3))
  fill(0, 0, 64)
  fill(2, 0, 40, true)
  order.request(0, 3, 1)
  assert.deepEqual(picks(order.nextRequested, order), [3])
  assert.deepEqual(picks(order.nextLikely, order), [40, 2, 7])
})

test('recorded pages that are adjacent go together, up to one that has gone, or the end of a run', () => {
  const inB = (start: number, end: number) => upTo(64 + start, 64 + end)
  const list = [...inB(50, 80), ...inB(90, 91), ...inB(92, 93), ...inB(91, 92)]
  const { fill, order } = setUp(false, 'recorded', Uint32Array.from(list))
  fill(1, 0, 1024)
  order.request(1, 70, 1)
  assert.deepEqual(picks(order.nextRequested, order), [70])
  const runs: string[] = []
  while (order.nextLikely()) runs.push(`${order.pick.page}+${order.pick.pages}`)
  assert.deepEqual(runs, ['50+14', '64+6', '71+9', '90+3'])
})

test('recorded and around: only what the record lacks brings its neighbours', () => {
  const { fill, order } = setUp(false, 'recorded-around', Uint32Array.of(1, 2))
  fill(0, 0, 64)
  order.request(0, 2, 1)
  order.request(0, 50, 1)
  assert.deepEqual(picks(order.nextRequested, order), [2, 50])
  assert.deepEqual(picks(order.nextLikely, order), [...upTo(51, 64), 48, 49, 1])
})

test('the adaptive order: the record where there is one; while one is made, nothing that hides what is asked for', () => {
  assert.equal(chooseOrder('adaptive', 'record'), 'recorded-around')
  assert.equal(chooseOrder('adaptive', 'recording'), 'linear')
  assert.equal(chooseOrder('adaptive', 'nothing'), 'fault-around')
  assert.equal(chooseOrder('adaptive', 'live'), 'linear')
  assert.equal(chooseOrder('bubbling', 'record'), 'bubbling')
  for (const pages of [0, 3, -1, 8192, Number.NaN])
    assert.throws(() => orderSpec('linear', pages), UsageError)
})

test('the scan wraps and says so', () => {
  const { fill, order } = setUp(false)
  fill(2, 5, 6)
  assert.ok(order.nextScanned())
  fill(0, 1, 2)
  assert.ok(order.nextScanned())
  assert.equal(order.pick.blockIndex, 0)
  assert.equal(order.wrapped(), 1)
  assert.equal(order.nextScanned(), false)
})
