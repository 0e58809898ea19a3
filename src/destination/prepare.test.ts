import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ProtocolError } from '../errors.js'
import { lockedMemoryFlags, mapAnonymous, mlockall, munlockall, viewOf } from '../os/mapping.js'
import { numberBlocks } from '../ram/block.js'
import { discardRange, emptyRam, unlockMemory } from './prepare.js'

const PAGE = 4096

function block(pages: number) {
  const mapping = mapAnonymous((pages + 2) * PAGE)
  const shape = { name: 'm', length: pages * PAGE, pageSize: PAGE, address: mapping.address + PAGE }
  const bytes = viewOf(mapping.address, mapping.length)
  bytes.fill(7)
  return { block: numberBlocks([shape])[0]!, bytes, mapping }
}

const pagesLeft = (bytes: Uint8Array): number[] => {
  const left: number[] = []
  for (let at = 0; at < bytes.length; at += PAGE) if (bytes[at] !== 0) left.push(at / PAGE)
  return left
}

test('a discard drops exactly its pages', (t) => {
  const { block: ram, bytes, mapping } = block(6)
  t.after(() => mapping.unmap())
  discardRange(ram, { start: PAGE, length: 2 * PAGE }, 0)
  assert.deepEqual(pagesLeft(bytes), [0, 1, 4, 5, 6, 7])
  emptyRam([ram])
  assert.deepEqual(pagesLeft(bytes), [0, 7])
})

for (const [what, start, length] of [
  ['nothing', 0, 0],
  ['behind the end', 6 * PAGE, PAGE],
  ['over the end', 5 * PAGE, 2 * PAGE],
  ['far away', 2 ** 52, 2 ** 52],
  ['from the middle of a page', 100, PAGE],
  ['up to the middle of a page', 0, 100],
] as const) {
  test(`a discard of ${what} is refused, and drops nothing`, (t) => {
    const { block: ram, bytes, mapping } = block(6)
    t.after(() => mapping.unmap())
    assert.throws(() => discardRange(ram, { start, length }, 5), ProtocolError)
    assert.equal(pagesLeft(bytes).length, 8)
  })
}

test('a discard of part of a huge page is refused', () => {
  const [huge] = numberBlocks([{ name: 'h', length: 8 << 20, pageSize: 2 << 20, address: 0 }])
  assert.throws(() => discardRange(huge!, { start: 0, length: PAGE }, 0), ProtocolError)
})

/** Why memory cannot be locked here, or false. */
function lockSkipReason(): string | false {
  try {
    mlockall(1)
    munlockall()
    return false
  } catch (error) {
    return (error as Error).message
  }
}

test('locked memory is unlocked, and locked again when asked', { skip: lockSkipReason() }, () => {
  unlockMemory()() // nothing was locked: nothing is locked afterwards
  assert.equal(lockedMemoryFlags(), 0)
  mlockall(1)
  try {
    const relock = unlockMemory()
    assert.equal(lockedMemoryFlags(), 0)
    relock()
    assert.equal(lockedMemoryFlags(), 1)
  } finally {
    munlockall()
  }
})
