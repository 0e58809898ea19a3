import assert from 'node:assert/strict'
import { closeSync, openSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { HostUnsupportedError, UsageError } from '../errors.js'
import { closeFd } from './channel-io.js'
import {
  createMemfd,
  discard,
  hugePages,
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
