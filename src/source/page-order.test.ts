import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { createBitmap } from '../ram/bitmap.js'
import { numberBlocks } from '../ram/block.js'
import { createPageOrder } from './page-order.js'

const MiB = 1024 * 1024

function setUp(whole: boolean) {
  const blocks = numberBlocks([
    { name: 'a', length: 64 * 4096, pageSize: 4096, address: 0x10_0000 },
    { name: 'b', length: 4 * MiB, pageSize: 2 * MiB, address: 0x4000_0000 },
    { name: 'c', length: 40 * 4096, pageSize: 4096, address: 0x20_0000 },
  ])
  const dirty = blocks.map((block) => createBitmap(block.pages))
  return { blocks, dirty, order: createPageOrder(blocks, dirty, () => whole) }
}

test('a requested page wins, and the scan goes on behind it', () => {
  const { dirty, order } = setUp(false)
  dirty[0]!.setRange(0, 64)
  assert.ok(order.nextScanned())
  assert.equal(order.pick.page, 0)
  order.request(0, 40, 1)
  assert.ok(order.nextRequested())
  assert.deepEqual({ ...order.pick }, { blockIndex: 0, page: 40, pages: 1, requested: true, again: false })
  assert.equal(order.nextRequested(), false)
  assert.ok(order.nextScanned())
  assert.equal(order.pick.page, 41)
})

test('a request for a page that is not dirty is dropped', () => {
  const { dirty, order } = setUp(false)
  dirty[0]!.set(3)
  order.request(0, 2, 1)
  order.request(0, 3, 1)
  order.request(0, 3, 1)
  assert.ok(order.nextRequested())
  assert.equal(order.pick.page, 3)
  assert.equal(order.nextRequested(), false)
  assert.equal(order.queued, 0)
})

test('a page that was sent goes once more where that is allowed, and the scan stays where it is', () => {
  const { blocks, dirty } = setUp(true)
  const asked: number[] = []
  const order = createPageOrder(
    blocks,
    dirty,
    () => true,
    dirty,
    (_, page) => asked.push(page) === 1,
  )
  dirty[0]!.setRange(0, 10)
  assert.ok(order.nextScanned())
  order.request(0, 0, 1)
  order.request(0, 0, 1)
  assert.ok(order.nextRequested())
  assert.deepEqual({ ...order.pick }, { blockIndex: 0, page: 0, pages: 1, requested: true, again: true })
  assert.equal(order.nextRequested(), false)
  assert.deepEqual(asked, [0, 0])
  assert.ok(order.nextScanned())
  assert.deepEqual({ ...order.pick }, { blockIndex: 0, page: 1, pages: 1, requested: false, again: false })
})

test('after the switch a huge page goes whole, whichever of its target pages was asked for', () => {
  const { dirty, order } = setUp(true)
  dirty[1]!.setRange(0, 1024)
  order.request(1, 700, 1)
  assert.ok(order.nextRequested())
  assert.deepEqual({ ...order.pick }, { blockIndex: 1, page: 512, pages: 512, requested: true, again: false })
  assert.equal(dirty[1]!.count(), 512)
})

test('every dirty page is taken exactly once, whatever is requested meanwhile', () => {
  const requests = fc.array(
    fc.record({
      block: fc.nat(2),
      page: fc.nat(39),
      pages: fc.integer({ min: 1, max: 9 }),
      after: fc.nat(4),
    }),
    { maxLength: 40 },
  )
  fc.assert(
    fc.property(requests, fc.array(fc.nat(63), { maxLength: 30 }), (list, holes) => {
      const { blocks, dirty, order } = setUp(true)
      for (const [i, bitmap] of dirty.entries()) bitmap.setRange(0, blocks[i]!.pages)
      for (const hole of holes) dirty[0]!.clear(hole)
      const want = dirty.reduce((sum, bitmap) => sum + bitmap.count(), 0)
      const taken = new Set<string>()
      const take = (): void => {
        const { blockIndex, page, pages } = order.pick
        for (let p = page; p < page + pages; p++) {
          assert.ok(!taken.has(`${blockIndex}:${p}`), 'taken twice')
          taken.add(`${blockIndex}:${p}`)
        }
      }
      for (const { block, page, pages, after } of list) {
        order.request(block, page, Math.min(pages, blocks[block]!.pages - page))
        for (let i = 0; i < after; i++) if (order.nextRequested() || order.nextScanned()) take()
      }
      while (order.nextRequested() || order.nextScanned()) take()
      assert.equal(taken.size, want)
    }),
    { numRuns: 200 },
  )
})

test('the scan wraps and says so', () => {
  const { dirty, order } = setUp(false)
  dirty[2]!.set(5)
  assert.ok(order.nextScanned())
  dirty[0]!.set(1)
  assert.ok(order.nextScanned())
  assert.equal(order.pick.blockIndex, 0)
  assert.equal(order.wrapped, 1)
  assert.equal(order.nextScanned(), false)
})
