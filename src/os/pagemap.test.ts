import assert from 'node:assert/strict'
import { closeSync, openSync, readSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import fc from 'fast-check'
import { discard, type Mapping, mapAnonymous, noHugePages, viewOf } from './mapping.js'
import {
  createPageScanner,
  type PageScanner,
  startWriteTracking,
  WRITE_TRACKING_FEATURES,
} from './pagemap.js'
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

test('first the populated pages are reported, then exactly those written since, once', {
  timeout: 90_000,
}, (t) => {
  const range = tracked(t)
  const populated: number[] = []
  for (let page = 0; page < PAGES; page += 3) {
    range.view[page * PAGE] = 1
    populated.push(page)
  }
  startWriteTracking(range.uffd, range.mapping.address, range.mapping.length)
  assert.deepEqual(writtenPages(range, true), populated)
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
  startWriteTracking(range.uffd, range.mapping.address, range.mapping.length)
  const even = Array.from({ length: PAGES / 2 }, (_, i) => 2 * i)
  for (const page of even) range.view[page * PAGE] = 1
  assert.deepEqual(writtenPages(range, true), even)
  assert.deepEqual(writtenPages(range, true), [])
})

test('reading a page that has memory is no write', (t) => {
  const range = tracked(t)
  range.view.fill(0)
  startWriteTracking(range.uffd, range.mapping.address, range.mapping.length)
  assert.equal(writtenPages(range, true).length, PAGES)
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

test('populated runs, told apart from the shared page of zeros', (t) => {
  const { mapping, view, scanner } = tracked(t)
  view.fill(1, 10 * PAGE, 12 * PAGE)
  assert.equal(view[12 * PAGE], 0) // A read maps the shared zero page.
  view[50 * PAGE] = 1
  view[60 * PAGE] = 1
  discard(mapping.address + 60 * PAGE, PAGE)

  const zeroness = new Map<number, boolean>()
  scanner.scanPopulated(mapping.address, mapping.length, (start, end, zero) => {
    for (let at = start; at < end; at += PAGE) zeroness.set((at - mapping.address) / PAGE, zero)
  })
  assert.deepEqual([...zeroness.keys()], [10, 11, 12, 50])
  const shared = isSharedZero(mapping.address + 12 * PAGE)
  if (!shared) t.diagnostic('this kernel gives a page of its own to whoever only reads')
  assert.deepEqual([...zeroness.values()], [false, false, shared, false])
})

/** What /proc/kpageflags says of the page, which needs root; without it a shared page is expected. */
function isSharedZero(address: number): boolean {
  const PAGE_FLAG_ZERO = 24n
  try {
    const entry = readWord('/proc/self/pagemap', address / PAGE)
    const frame = entry & ((1n << 55n) - 1n)
    return frame === 0n || ((readWord('/proc/kpageflags', Number(frame)) >> PAGE_FLAG_ZERO) & 1n) === 1n
  } catch {
    return true
  }
}

function readWord(path: string, index: number): bigint {
  const fd = openSync(path, 'r')
  try {
    const word = Buffer.alloc(8)
    readSync(fd, word, 0, 8, index * 8)
    return word.readBigUInt64LE()
  } finally {
    closeSync(fd)
  }
}
