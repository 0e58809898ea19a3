// Mappings: anonymous memory, huge pages, files and memfds, and what can be advised about them. Any thread.

import { readFileSync } from 'node:fs'
import { HostUnsupportedError, SystemError, UsageError } from '../errors.js'
import { check, errno, errnoName, hex, libc } from './libc.js'
import { LINUX } from './linux-abi.js'
import { type NativeBuffer, nativeBuffer } from './memory.js'

export { addressOf, isZeroRange, memcmp, memcpy, memset, viewOf } from './memory.js'

export interface Mapping {
  readonly address: number
  /** Bytes, a multiple of `pageSize`. */
  readonly length: number
  readonly pageSize: number
  /** Idempotent. Views of the mapping must not be used any more: touching one kills the process. */
  unmap(): void
}

let pageSizeOfHost: number | undefined

/** Bytes in an ordinary page of this host. */
export function pageSize(): number {
  pageSizeOfHost ??= readPageSize()
  return pageSizeOfHost
}

/** AT_PAGESZ of the auxiliary vector: what the kernel told this process, without a guess about sysconf's numbers. */
function readPageSize(): number {
  libc() // refuses other platforms with a better message than a missing /proc
  const AT_PAGESZ = 6n
  const vector = new BigUint64Array(new Uint8Array(readFileSync('/proc/self/auxv')).buffer)
  for (let i = 0; i + 1 < vector.length; i += 2) {
    if (vector[i] === AT_PAGESZ) return Number(vector[i + 1])
  }
  return 4096
}

export interface AnonymousOptions {
  /** Bytes; default the host's page size, otherwise a huge page size (2 MiB, 1 GiB) from the hugetlb pool. */
  readonly pageSize?: number
  /** Do not charge swap or reserve huge pages. Without a reserved huge page a touch kills the process (SIGBUS). */
  readonly noReserve?: boolean
}

/** Zeroed private memory, aligned to its page size. @throws HostUnsupportedError without enough huge pages. */
export function mapAnonymous(length: number, options: AnonymousOptions = {}): Mapping {
  const page = options.pageSize ?? pageSize()
  const huge = page === pageSize() ? 0 : LINUX.MAP_HUGETLB | hugePageFlag(page)
  const flags = LINUX.MAP_PRIVATE | LINUX.MAP_ANONYMOUS | huge | (options.noReserve ? LINUX.MAP_NORESERVE : 0)
  return map(length, page, flags, -1, 0)
}

export interface FileOptions {
  /** Writes reach the file and other mappings of it. Default: private, copy on write. */
  readonly shared?: boolean
  /** Byte offset in the file, a multiple of the page size. */
  readonly offset?: number
  /** Page size of the file: needed for files on hugetlbfs. */
  readonly pageSize?: number
  readonly readOnly?: boolean
}

/** Map a file. A private mapping may be unmapped, and the descriptor closed, at any time; the file is not changed. */
export function mapFile(fd: number, length: number, options: FileOptions = {}): Mapping {
  const flags = options.shared ? LINUX.MAP_SHARED : LINUX.MAP_PRIVATE | LINUX.MAP_NORESERVE
  return map(length, options.pageSize ?? pageSize(), flags, fd, options.offset ?? 0, options.readOnly)
}

function map(
  length: number,
  page: number,
  flags: number,
  fd: number,
  offset: number,
  readOnly = false,
): Mapping {
  if (!Number.isSafeInteger(length) || length <= 0 || length % page !== 0) {
    throw new UsageError(
      `a mapping's length must be a positive multiple of its page size ${page}; got ${length}`,
    )
  }
  const protection = readOnly ? LINUX.PROT_READ : LINUX.PROT_READ | LINUX.PROT_WRITE
  const address = libc().mmap(0, length, protection, flags, fd, offset)
  if (address === -1) throw mapError(length, page)
  let mapped = true
  return {
    address,
    length,
    pageSize: page,
    unmap() {
      if (!mapped) return
      mapped = false
      unmap(address, length)
    },
  }
}

function mapError(length: number, page: number): Error {
  const name = errnoName(errno())
  if (page !== pageSize() && (name === 'ENOMEM' || name === 'EINVAL')) return hugePagesMissing(length, page)
  return new SystemError('mmap', name, `${length} bytes`)
}

function hugePagesMissing(length: number, page: number): HostUnsupportedError {
  const pool = `/sys/kernel/mm/hugepages/hugepages-${page / 1024}kB/nr_hugepages`
  return new HostUnsupportedError(
    `this host has not ${length / page} free huge pages of ${page} bytes; reserve them: echo ${length / page} > ${pool}`,
  )
}

/** The page size's logarithm, in the bits where mmap and memfd_create expect it. @throws UsageError */
function hugePageFlag(size: number): number {
  const log = Math.log2(size)
  if (!Number.isInteger(log) || log > 40 || size < pageSize()) {
    throw new UsageError(`huge page size must be a power of two above ${pageSize()}; got ${size}`)
  }
  return log * 2 ** LINUX.MAP_HUGE_SHIFT
}

export interface MemfdOptions {
  readonly hugePageSize?: number
}

/** A nameless file in memory, `length` bytes. The caller closes the descriptor. */
export function createMemfd(name: string, length: number, options: MemfdOptions = {}): number {
  const huge = options.hugePageSize === undefined ? 0 : LINUX.MFD_HUGETLB | hugePageFlag(options.hugePageSize)
  const fd = check('memfd_create', libc().memfd_create(name, LINUX.MFD_CLOEXEC | huge), name)
  if (libc().ftruncate(fd, length) === -1) {
    const error = new SystemError('ftruncate', errnoName(errno()), `memfd ${name}, ${length} bytes`)
    libc().close(fd)
    throw error
  }
  return fd
}

/** Give a range back whose mapping another thread made. */
export function unmap(address: number, length: number): void {
  check('munmap', libc().munmap(address, length), hex(address))
}

/** Drop the pages: private anonymous ones read as zeros again, or fault anew where userfaultfd watches. */
export function discard(address: number, length: number): void {
  advise(address, length, LINUX.MADV_DONTNEED)
}

/** Ask for transparent huge pages. A kernel built without them refuses (EINVAL), which is no loss. */
export function hugePages(address: number, length: number): void {
  advise(address, length, LINUX.MADV_HUGEPAGE, 'EINVAL')
}

/** No transparent huge pages: one placed page must not make its 511 neighbours present. */
export function noHugePages(address: number, length: number): void {
  advise(address, length, LINUX.MADV_NOHUGEPAGE, 'EINVAL')
}

/** The kernel begins to read it, if it is a file's, and does not wait for that. A hint. */
export function willNeed(address: number, length: number): void {
  libc().madvise(address, length, LINUX.MADV_WILLNEED)
}

/** Every page of it can be read without a fault, for now; false where one cannot be read, or the kernel is older than 5.14. */
export const populate = (address: number, length: number): boolean =>
  libc().madvise(address, length, LINUX.MADV_POPULATE_READ) === 0

const RESIDENCE_PAGES = 256
const RESIDENT_WORD = 0x01_01_01_01
let residence: NativeBuffer | undefined

/**
 * The page cache has all of this part of a mapped file; true as well where that is not for us to know, which is so of a file that
 * is not ours (mincore(2)), and perhaps just behind the end of one that was cut off: there, a touch is a signal nevertheless.
 */
export function isCached(address: number, length: number): boolean {
  residence ??= nativeBuffer(RESIDENCE_PAGES)
  const { words, bytes } = residence
  const stride = RESIDENCE_PAGES * pageSize()
  for (let at = 0; at < length; at += stride) {
    const part = Math.min(stride, length - at)
    if (libc().mincore(address + at, part, residence.address) !== 0) return false
    const pages = part / pageSize()
    for (let i = 0; i < pages >> 2; i++) if ((words[i]! & RESIDENT_WORD) !== RESIDENT_WORD) return false
    for (let i = pages & ~3; i < pages; i++) if ((bytes[i]! & 1) === 0) return false
  }
  return true
}

const SEEK_END = 2

/** Where a file, or a block device, ends now. */
export const endOfFile = (fd: number): number => check('lseek', libc().lseek(fd, 0, SEEK_END), `${fd}`)

function advise(address: number, length: number, advice: number, tolerated?: string): void {
  if (libc().madvise(address, length, advice) === 0) return
  const name = errnoName(errno())
  if (name !== tolerated)
    throw new SystemError('madvise', name, `${hex(address)} + ${length}, advice ${advice}`)
}

/** Free a range of a file in memory or on disk; it reads as zeros. The file keeps its size. */
export function punchHole(fd: number, offset: number, length: number): void {
  const mode = LINUX.FALLOC_FL_KEEP_SIZE | LINUX.FALLOC_FL_PUNCH_HOLE
  check('fallocate', libc().fallocate(fd, mode, offset, length), `offset ${offset} + ${length}`)
}

/** `flags`: MCL_CURRENT and MCL_FUTURE, as `lockedMemoryFlags` returns them. */
export function mlockall(flags: number): void {
  check('mlockall', libc().mlockall(flags), 'see ulimit -l')
}

export function munlockall(): void {
  check('munlockall', libc().munlockall())
}

/**
 * The flags with which `mlockall` restores what `munlockall` ends: 0 if no memory is locked. Locked memory
 * cannot be missing, so a postcopy destination must unlock it.
 */
export function lockedMemoryFlags(): number {
  const before = lockedBytes()
  if (before === 0) return 0
  // The kernel does not tell whether future mappings are locked, but a new mapping shows it.
  const probe = mapAnonymous(pageSize())
  const grown = lockedBytes() > before
  probe.unmap()
  return grown ? LINUX.MCL_CURRENT | LINUX.MCL_FUTURE : LINUX.MCL_CURRENT
}

function lockedBytes(): number {
  const kib = /^VmLck:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
  return Number(kib ?? 0) * 1024
}
