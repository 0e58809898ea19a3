import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import fc from 'fast-check'
import { discard, type Mapping, mapAnonymous, noHugePages, viewOf } from './mapping.js'
import { armWriteTracking, createPageScanner, type PageScanner, WRITE_TRACKING_FEATURES } from './pagemap.js'
import { openUserfaultfd, type Userfaultfd } from './userfaultfd.js'

const PAGE = 4096
const PAGES = 4096

interface Tracked {
  readonly mapping: Mapping
  readonly view: Uint8Array
  readonly uffd: Userfaultfd
  readonly scanner: PageScanner
}

function tracked(t: TestContext): Tracked {
  const mapping = mapAnonymous(PAGES * PAGE)
  noHugePages(mapping.address, mapping.length)
  const uffd = openUserfaultfd({ features: WRITE_TRACKING_FEATURES })
  const scanner = createPageScanner()
  t.after(() => {
    scanner.close()
    uffd.close()
    mapping.unmap()
  })
  return { mapping, view: viewOf(mapping.address, mapping.length), uffd, scanner }
}

function writtenPages({ mapping, scanner }: Tracked, reprotect: boolean): number[] {
  const pages: number[] = []
  const onRun = (start: number, end: number) => {
    for (let address = start; address < end; address += PAGE) pages.push((address - mapping.address) / PAGE)
  }
  scanner.scanWritten(mapping.address, mapping.length, onRun, { reprotect })
  return pages
}

const pageSets = fc.uniqueArray(fc.nat(PAGES - 1), { maxLength: 200 })

test('exactly the pages written since arming are reported, once', { timeout: 30_000 }, (t) => {
  const range = tracked(t)
  // Some pages exist before, some do not: neither kind counts as written.
  for (let page = 0; page < PAGES; page += 3) range.view[page * PAGE] = 1
  armWriteTracking(range.uffd, range.mapping.address, range.mapping.length)
  assert.deepEqual(writtenPages(range, true), [])
  fc.assert(
    fc.property(pageSets, (pages) => {
      const sorted = [...pages].sort((a, b) => a - b)
      for (const page of pages) range.view[page * PAGE + 17] = 2
      assert.deepEqual(writtenPages(range, false), sorted)
      assert.deepEqual(writtenPages(range, true), sorted)
      assert.deepEqual(writtenPages(range, true), [])
    }),
    { numRuns: 30 },
  )
})

test('more runs than fit one ioctl are all reported', (t) => {
  const range = tracked(t)
  armWriteTracking(range.uffd, range.mapping.address, range.mapping.length)
  const even = Array.from({ length: PAGES / 2 }, (_, i) => 2 * i)
  for (const page of even) range.view[page * PAGE] = 1
  assert.deepEqual(writtenPages(range, true), even)
  assert.deepEqual(writtenPages(range, true), [])
})

test('reading a page is no write', (t) => {
  const range = tracked(t)
  armWriteTracking(range.uffd, range.mapping.address, range.mapping.length)
  let sum = 0
  for (let page = 0; page < PAGES; page++) sum += range.view[page * PAGE]!
  assert.equal(sum, 0)
  assert.deepEqual(writtenPages(range, true), [])
})

test('a range that is not armed cannot be scanned and re-protected', (t) => {
  const range = tracked(t)
  range.view[0] = 1
  assert.throws(() => writtenPages(range, true), { name: 'SystemError', errnoName: 'EPERM' })
})

test('an armed range may wait for missing pages too: a copy lands on its marks, zeropage does not', (t) => {
  const range = tracked(t)
  const { address, length } = range.mapping
  const source = mapAnonymous(PAGE)
  t.after(() => source.unmap())
  armWriteTracking(range.uffd, address, length, true)
  assert.equal(range.uffd.zeropage(address, PAGE), 'already')
  for (const page of [2, 3])
    assert.equal(range.uffd.copy(address + page * PAGE, source.address, PAGE), 'placed')
  assert.deepEqual(writtenPages(range, true), [2, 3])
  range.view[3 * PAGE] = 1
  assert.deepEqual(writtenPages(range, true), [3])
})

test('populated runs, told apart from the shared page of zeros', (t) => {
  const { mapping, view, scanner } = tracked(t)
  view.fill(1, 10 * PAGE, 12 * PAGE)
  assert.equal(view[12 * PAGE], 0) // A read maps the shared zero page.
  view[50 * PAGE] = 1
  view[60 * PAGE] = 1
  discard(mapping.address + 60 * PAGE, PAGE)

  const runs: unknown[] = []
  scanner.scanPopulated(mapping.address, mapping.length, (start, end, zero) => {
    runs.push([(start - mapping.address) / PAGE, (end - mapping.address) / PAGE, zero])
  })
  assert.deepEqual(runs, [
    [10, 12, false],
    [12, 13, true],
    [50, 51, false],
  ])
})
