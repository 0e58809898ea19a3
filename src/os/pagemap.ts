// Which pages exist, and which were written: the ioctl PAGEMAP_SCAN on /proc/self/pagemap (Linux 6.7), together with
// userfaultfd's asynchronous write protection, which lets writers go on and only notes that they wrote.
// Source thread, or whichever thread keeps the dirty log. Source: include/uapi/linux/fs.h, admin-guide/mm/pagemap.rst.

import { HostUnsupportedError, SystemError } from '../errors.js'
import { check, errno, errnoName, hex, libc } from './libc.js'
import { ioc, LINUX, layout } from './linux-abi.js'
import { getU64, nativeBuffer, setU64 } from './memory.js'
import type { UserfaultfdOperations } from './userfaultfd.js'
import type { Feature } from './userfaultfd-abi.js'

/** struct pm_scan_arg */
export const PM_SCAN_ARG = layout({
  size: 'u64',
  flags: 'u64',
  start: 'u64',
  end: 'u64',
  walk_end: 'u64',
  vec: 'u64',
  vec_len: 'u64',
  max_pages: 'u64',
  category_inverted: 'u64',
  category_mask: 'u64',
  category_anyof_mask: 'u64',
  return_mask: 'u64',
})
export const PAGE_REGION = layout({ start: 'u64', end: 'u64', categories: 'u64' })
export const PAGEMAP_SCAN = ioc('readWrite', 'f'.charCodeAt(0), 16, PM_SCAN_ARG.size)
export const PAGE_IS = {
  WPALLOWED: 1,
  WRITTEN: 2,
  FILE: 4,
  PRESENT: 8,
  SWAPPED: 16,
  PFNZERO: 32,
  HUGE: 64,
} as const
export const PM_SCAN_WP_MATCHING = 1
export const PM_SCAN_CHECK_WPASYNC = 2

/** Runs taken with one ioctl. */
const REGIONS_MAX = 1024

/** What a userfaultfd must be opened with for `startWriteTracking`. */
export const WRITE_TRACKING_FEATURES: readonly Feature[] = [
  'PAGEFAULT_FLAG_WP',
  'WP_HUGETLBFS_SHMEM',
  'WP_UNPOPULATED',
  'WP_ASYNC',
]

/** A run of pages: addresses of its first byte and of the byte after its last. It must not scan with the same scanner. */
export type OnWritten = (start: number, end: number) => void
/** `zero`: the run maps the kernel's shared page of zeros, so it need not be read to know that it is zero. */
export type OnPopulated = (start: number, end: number, zero: boolean) => void

/** For one thread; the region vector is reused. */
export interface PageScanner {
  /**
   * Report the runs written since they were armed. With `reprotect` each page is armed again in the same step in which
   * it is reported: no write is lost and none is reported twice. @throws SystemError EPERM on a range that is not armed
   */
  scanWritten(address: number, length: number, onRun: OnWritten, options: { reprotect: boolean }): void
  /** Report the runs that have a page, in memory or swapped out. All others read as zeros (or from their file). */
  scanPopulated(address: number, length: number, onRun: OnPopulated): void
  close(): void
}

interface Scan {
  readonly flags: number
  /** All of these. */
  readonly mask: number
  /** At least one of these, if not 0. */
  readonly anyOf: number
  /** Categories by which runs are told apart. */
  readonly report: number
}

// With WRITTEN alone the kernel also reports absent pages that have never been protected, and marks them.
const WRITTEN = { mask: PAGE_IS.WRITTEN, anyOf: PAGE_IS.PRESENT | PAGE_IS.SWAPPED, report: PAGE_IS.WRITTEN }
const SCAN_WRITTEN: Scan = { ...WRITTEN, flags: 0 }
const SCAN_AND_REPROTECT: Scan = { ...WRITTEN, flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC }
const SCAN_POPULATED: Scan = {
  flags: 0,
  mask: 0,
  anyOf: PAGE_IS.PRESENT | PAGE_IS.SWAPPED,
  report: PAGE_IS.PRESENT | PAGE_IS.SWAPPED | PAGE_IS.PFNZERO,
}

/** @throws HostUnsupportedError on a kernel without PAGEMAP_SCAN */
export function createPageScanner(): PageScanner {
  const fd = check(
    'open',
    libc().open('/proc/self/pagemap', LINUX.O_RDONLY | LINUX.O_CLOEXEC, 0),
    '/proc/self/pagemap',
  )
  const { ioctl, close } = libc()
  const argument = nativeBuffer(PM_SCAN_ARG.size)
  const regions = nativeBuffer(REGIONS_MAX * PAGE_REGION.size)
  const { words } = argument
  const at = PM_SCAN_ARG.word
  setU64(words, at.size, PM_SCAN_ARG.size)
  setU64(words, at.vec, regions.address)
  setU64(words, at.vec_len, REGIONS_MAX)

  function scan(address: number, length: number, kind: Scan, onRun: OnPopulated): void {
    const end = address + length
    words[at.flags] = kind.flags
    words[at.category_mask] = kind.mask
    words[at.category_anyof_mask] = kind.anyOf
    words[at.return_mask] = kind.report
    setU64(words, at.end, end)
    // A full vector ends the walk early; `walk_end` says where.
    for (let start = address; start < end; start = getU64(words, at.walk_end)) {
      setU64(words, at.start, start)
      const count = ioctl(fd, PAGEMAP_SCAN, argument.address)
      if (count === -1) throw scanError(address, length)
      report(count, onRun)
    }
  }

  function report(count: number, onRun: OnPopulated): void {
    for (let i = 0; i < count; i++) {
      const region = (i * PAGE_REGION.size) >> 2
      const zero = (regions.words[region + PAGE_REGION.word.categories]! & PAGE_IS.PFNZERO) !== 0
      onRun(getU64(regions.words, region), getU64(regions.words, region + PAGE_REGION.word.end), zero)
    }
  }

  return {
    scanWritten(address, length, onRun, { reprotect }) {
      scan(address, length, reprotect ? SCAN_AND_REPROTECT : SCAN_WRITTEN, onRun)
    },
    scanPopulated: (address, length, onRun) => scan(address, length, SCAN_POPULATED, onRun),
    close: () => close(fd),
  }
}

function scanError(address: number, length: number): Error {
  const name = errnoName(errno())
  if (name === 'ENOTTY') return new HostUnsupportedError('this kernel lacks PAGEMAP_SCAN; Linux 6.7 has it')
  return new SystemError('PAGEMAP_SCAN', name, `${hex(address)} + ${length}`)
}

/**
 * Start to note writes to a range; writers never wait. Pages that have memory now count as written until the first
 * `scanWritten` with `reprotect`, which therefore reports just the populated pages, with no gap between the two.
 * `userfaultfd` was opened with WRITE_TRACKING_FEATURES.
 *
 * Absent pages are not marked: one that comes into being later has no protection and counts as written. So a sparse
 * range costs neither page tables nor time. In turn, memory that is given back (MADV_DONTNEED) is not reported.
 */
export function startWriteTracking(
  userfaultfd: UserfaultfdOperations,
  address: number,
  length: number,
): void {
  userfaultfd.register(address, length, 'write-protect')
}
