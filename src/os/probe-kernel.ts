// The host probe's checks that try something on the running kernel: locking, a test page, write tracking, scans, pools.

import { readdirSync, readFileSync } from 'node:fs'
import { messageOf } from '../errors.js'
import { lockedMemoryFlags, mapAnonymous, mlockall, munlockall, pageSize, viewOf } from './mapping.js'
import { createPageScanner, startWriteTracking, WRITE_TRACKING_FEATURES } from './pagemap.js'
import { type Finding, missingFrom, NEWER_KERNEL } from './probe-finding.js'
import { openUserfaultfd, type Userfaultfd } from './userfaultfd.js'

/** A locked page cannot be missing. Memory that was locked is locked again: this is only a trial. */
export function checkUnlock(): Finding {
  return attempt('munlockall failed', 'allow this process to unlock its memory', () => {
    const flags = lockedMemoryFlags()
    munlockall()
    if (flags === 0) return 'no memory is locked'
    mlockall(flags)
    return 'locked memory is unlocked while a guest arrives'
  })
}

export function checkTestArea(userfaultfd: Userfaultfd): Finding {
  const area = mapAnonymous(pageSize())
  try {
    const ioctls = userfaultfd.register(area.address, area.length, 'missing')
    userfaultfd.unregister(area.address, area.length)
    const missing = missingFrom(ioctls, ['WAKE', 'COPY', 'ZEROPAGE'])
    if (missing === '') return { ok: true, detail: `registered; it allows ${[...ioctls].join(', ')}` }
    return { ok: false, detail: `a registered page does not allow ${missing}`, remedy: NEWER_KERNEL }
  } catch (error) {
    return { ok: false, detail: `a page cannot be registered: ${messageOf(error)}`, remedy: NEWER_KERNEL }
  } finally {
    area.unmap()
  }
}

const TRACKING_REMEDY = 'use Linux 6.7 or newer; without it a guest here cannot be a live migration source'

/** Arms one page, writes to the one behind it, and wants exactly that one reported. */
export function checkWriteTracking(): Finding {
  return attempt('writes cannot be tracked', TRACKING_REMEDY, () => {
    const page = pageSize()
    const area = mapAnonymous(2 * page)
    const scanner = createPageScanner()
    let userfaultfd: Userfaultfd | undefined
    try {
      userfaultfd = openUserfaultfd({ features: WRITE_TRACKING_FEATURES })
      startWriteTracking(userfaultfd, area.address, area.length)
      const view = viewOf(area.address, area.length)
      view[0] = 1
      scanner.scanWritten(area.address, area.length, () => {}, { reprotect: true })
      view[page] = 1
      const runs: number[] = []
      const onRun = (start: number, end: number) => runs.push(start - area.address, end - area.address)
      scanner.scanWritten(area.address, area.length, onRun, { reprotect: true })
      if (runs.join() !== `${page},${2 * page}`) throw new Error(`wrong pages reported: ${runs.join()}`)
      return 'WP_ASYNC and PAGEMAP_SCAN report writes exactly'
    } finally {
      userfaultfd?.close()
      scanner.close()
      area.unmap()
    }
  })
}

export function checkPagemapScan(): Finding {
  return attempt('page states cannot be scanned', TRACKING_REMEDY, () => {
    const area = mapAnonymous(pageSize())
    const scanner = createPageScanner()
    try {
      scanner.scanPopulated(area.address, area.length, () => {})
      return 'PAGEMAP_SCAN tells pages that were never touched'
    } finally {
      scanner.close()
      area.unmap()
    }
  })
}

export function checkLockLimit(): Finding {
  const limit =
    /^Max locked memory\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? 'unknown'
  const flags = lockedMemoryFlags()
  if (limit === 'unlimited' || flags === 0) {
    return { ok: true, detail: `${limit}${flags === 0 ? '; no memory is locked' : ''}` }
  }
  return {
    ok: 'warning',
    detail: `${limit} bytes: guest RAM above that cannot be locked again after it has arrived`,
    remedy: 'ulimit -l unlimited, if you lock guest memory',
  }
}

const POOLS = '/sys/kernel/mm/hugepages'

/** Pools for the huge page sizes in `summary`; with none in it, just what is there. */
export function checkHugePagePool(summary: number): Finding {
  const pools = readPools()
  const empty = pools.filter((pool) => hasBit(summary, pool.bytes) && pool.free === 0)
  const listed = pools.map((pool) => `${pool.free} free of ${pool.bytes / 1024} KiB`).join(', ')
  if (empty.length === 0) return { ok: true, detail: listed || 'none' }
  return {
    ok: false,
    detail: `no free huge pages of ${empty.map((pool) => `${pool.bytes / 1024} KiB`).join(', ')}, which the guest uses`,
    remedy: `reserve them: echo COUNT > ${POOLS}/hugepages-${empty[0]!.bytes / 1024}kB/nr_hugepages`,
  }
}

/** Page sizes may be above 2^31, where JS's bit operators end. */
function hasBit(summary: number, bit: number): boolean {
  return Math.floor(summary / bit) % 2 === 1
}

function readPools(): { bytes: number; free: number }[] {
  let names: string[]
  try {
    names = readdirSync(POOLS)
  } catch {
    return []
  }
  return names.map((name) => ({
    bytes: Number(/\d+/.exec(name)?.[0]) * 1024,
    free: Number(readFileSync(`${POOLS}/${name}/free_hugepages`, 'utf8')),
  }))
}

function attempt(failure: string, remedy: string, body: () => string): Finding {
  try {
    return { ok: true, detail: body() }
  } catch (error) {
    return { ok: false, detail: `${failure}: ${messageOf(error)}`, remedy }
  }
}
