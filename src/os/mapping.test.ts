import assert from 'node:assert/strict'
import { closeSync, openSync, readSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { HostUnsupportedError, UsageError } from '../errors.js'
import { closeFd } from './channel-io.js'
import {
  createMemfd,
  discard,
  endOfFile,
  hugePages,
  isCached,
  isZeroRange,
  lockedMemoryFlags,
  mapAnonymous,
  mapFile,
  mlockall,
  munlockall,
  noHugePages,
  pageSize,
  punchHole,
  viewOf,
} from './mapping.js'

const PAGE = pageSize()

test('anonymous memory is zero, and zero again after a discard', (t) => {
  const mapping = mapAnonymous(16 * PAGE)
  t.after(() => mapping.unmap())
  hugePages(mapping.address, mapping.length)
  noHugePages(mapping.address, mapping.length)
  const view = viewOf(mapping.address, mapping.length)
  view.fill(1)
  discard(mapping.address + PAGE, PAGE)
  assert.equal(view[PAGE - 1], 1)
  assert(isZeroRange(mapping.address + PAGE, PAGE))
  assert.equal(view[2 * PAGE], 1)
})

test('of a file in the page cache all is there, but nothing behind its end', (t) => {
  const PAGES = 600
  const path = join(tmpdir(), `farfault-cached-${process.pid}`)
  writeFileSync(path, Buffer.alloc(PAGES * PAGE, 1))
  const fd = openSync(path, 'r')
  const mapping = mapFile(fd, PAGES * PAGE, { readOnly: true })
  t.after(() => {
    mapping.unmap()
    closeSync(fd)
    rmSync(path)
  })
  const cached = (from: number, end: number) => isCached(mapping.address + from * PAGE, (end - from) * PAGE)
  assert.ok(cached(0, PAGES) && cached(1, 2) && cached(3, 259))
  assert.equal(endOfFile(fd), PAGES * PAGE)
  const LEFT = 300
  truncateSync(path, LEFT * PAGE)
  assert.equal(endOfFile(fd), LEFT * PAGE)
  assert.ok(cached(0, LEFT))
  const behind = LEFT + 256 // the kernel may keep as many pages together
  for (const from of [0, behind - 257, behind - 256, behind - 255, behind - 1, behind])
    for (const end of [behind + 1, behind + 3]) assert.ok(!cached(from, end), `${from} to ${end}`)
})

test('unmap twice is harmless', () => {
  const mapping = mapAnonymous(PAGE)
  mapping.unmap()
  mapping.unmap()
})

test('a private file mapping does not change the file; a shared one does', (t) => {
  const fd = createMemfd('test', 2 * PAGE)
  const shared = mapFile(fd, PAGE, { shared: true, offset: PAGE })
  const other = mapFile(fd, 2 * PAGE, { shared: true })
  const own = mapFile(fd, 2 * PAGE)
  t.after(() => {
    for (const mapping of [shared, other, own]) mapping.unmap()
    closeFd(fd)
  })
  viewOf(shared.address, PAGE)[0] = 3
  viewOf(own.address, 2 * PAGE)[0] = 4
  assert.equal(viewOf(other.address, 2 * PAGE)[PAGE], 3)
  assert.equal(viewOf(other.address, 2 * PAGE)[0], 0)
  punchHole(fd, PAGE, PAGE)
  assert(isZeroRange(other.address + PAGE, PAGE))
})

test('a file on disk is mapped at an offset', (t) => {
  const path = join(tmpdir(), `farfault-mapping-${process.pid}`)
  writeFileSync(path, Buffer.alloc(3 * PAGE, 'x'))
  const fd = openSync(path, 'r')
  const mapping = mapFile(fd, PAGE, { offset: 2 * PAGE })
  t.after(() => {
    mapping.unmap()
    closeSync(fd)
    rmSync(path)
  })
  viewOf(mapping.address, PAGE)[0] = 0
  const byte = Buffer.alloc(1)
  readSync(fd, byte, 0, 1, 2 * PAGE)
  assert.equal(byte.toString(), 'x')
})

test('bad lengths and page sizes are refused', () => {
  assert.throws(() => mapAnonymous(PAGE + 1), UsageError)
  assert.throws(() => mapAnonymous(0), UsageError)
  assert.throws(() => mapAnonymous(3 * 2 ** 20, { pageSize: 3 * 2 ** 20 }), UsageError)
})

test('huge pages that are not there: says how to reserve them', () => {
  const map = () => mapAnonymous(2 ** 46, { pageSize: 2 * 2 ** 20 })
  assert.throws(map, (error) => error instanceof HostUnsupportedError && /nr_hugepages/.test(error.message))
})

test('lockedMemoryFlags tells what mlockall did', (t) => {
  assert.equal(lockedMemoryFlags(), 0)
  if (process.getuid?.() !== 0) return t.skip('locking all memory needs root here')
  const MCL_CURRENT = 1
  const MCL_FUTURE = 2
  const MCL_ONFAULT = 4
  t.after(() => munlockall())
  for (const flags of [MCL_CURRENT, MCL_CURRENT | MCL_FUTURE]) {
    mlockall(flags | MCL_ONFAULT) // Lock without populating gigabytes of reserved address space.
    assert.equal(lockedMemoryFlags(), flags)
    munlockall()
    assert.equal(lockedMemoryFlags(), 0)
  }
})
