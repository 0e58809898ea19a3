import assert from 'node:assert/strict'
import { test } from 'node:test'
import { numberBlocks } from '../ram/block.js'
import { PAGE_STATE, samplePages } from './page-map.js'
import { allocatePageMaps, bitmapsOver } from './shared.js'

const PAGE = 4096
const { missing, partly, received, waiting, faulted } = PAGE_STATE

function ram() {
  const blocks = numberBlocks([
    { name: 'a', length: 6 * PAGE, pageSize: PAGE, address: 0 },
    { name: 'b', length: 4 * PAGE, pageSize: PAGE, address: 1 << 20 },
  ])
  const maps = allocatePageMaps(blocks)
  const [haveA, haveB] = bitmapsOver(blocks, maps.received)
  const [wantA, wantB] = bitmapsOver(blocks, maps.requested)
  return { blocks, maps, haveA: haveA!, haveB: haveB!, wantA: wantA!, wantB: wantB! }
}

test('a cell a page: each state', () => {
  const { blocks, maps, haveA, haveB, wantA, wantB } = ram()
  haveA.setRange(1, 3)
  wantA.set(2)
  wantA.set(4)
  haveB.set(3)
  wantB.set(3)
  assert.deepEqual(
    [...samplePages({ blocks, maps }, 100)],
    [missing, received, faulted, missing, waiting, missing, missing, missing, missing, faulted],
  )
})

test('fewer cells than pages: a cell over the border of two blocks', () => {
  const { blocks, maps, haveA, haveB, wantB } = ram()
  haveA.setRange(0, 6)
  assert.deepEqual([...samplePages({ blocks, maps }, 2)], [received, partly])
  haveB.setRange(0, 4)
  assert.deepEqual([...samplePages({ blocks, maps }, 3)], [received, received, received])
  haveB.clear(0)
  wantB.set(0)
  assert.deepEqual([...samplePages({ blocks, maps }, 3)], [received, received, waiting])
})

test('no blocks, no cells', () => {
  assert.equal(samplePages({ blocks: [], maps: allocatePageMaps([]) }, 10).length, 0)
})
