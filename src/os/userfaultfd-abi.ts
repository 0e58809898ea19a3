// The kernel's userfaultfd interface as tables: structures, ioctl numbers, bits. Pure; any thread.
// Source: the kernel's include/uapi/linux/userfaultfd.h and its documentation, admin-guide/mm/userfaultfd.rst.
// All structures are little-endian here, as are the machines we run on. test/abi compares this with the C header.

import assert from 'node:assert'
import { ioc, type Layout, layout } from './linux-abi.js'

export const UFFDIO_API_STRUCT = layout({ api: 'u64', features: 'u64', ioctls: 'u64' })
export const UFFDIO_RANGE = layout({ start: 'u64', len: 'u64' })
export const UFFDIO_REGISTER_STRUCT = layout({ start: 'u64', len: 'u64', mode: 'u64', ioctls: 'u64' })
export const UFFDIO_COPY_STRUCT = layout({ dst: 'u64', src: 'u64', len: 'u64', mode: 'u64', copy: 's64' })
export const UFFDIO_ZEROPAGE_STRUCT = layout({ start: 'u64', len: 'u64', mode: 'u64', zeropage: 's64' })
export const UFFDIO_WRITEPROTECT_STRUCT = layout({ start: 'u64', len: 'u64', mode: 'u64' })
/** struct uffd_msg with the fields of its page-fault arm; the other arms begin with one or two addresses too. */
export const UFFD_MSG = layout({
  event: 'u8',
  reserved1: 'u8',
  reserved2: 'u16',
  reserved3: 'u32',
  flags: 'u64',
  address: 'u64',
  ptid: 'u32',
})

export const UFFDIO = 0xaa
const readWrite = (number: number, struct: Layout) => ioc('readWrite', UFFDIO, number, struct.size)
const readOnly = (number: number, struct: Layout) => ioc('read', UFFDIO, number, struct.size)

export const UFFDIO_API = readWrite(0x3f, UFFDIO_API_STRUCT)
export const UFFDIO_REGISTER = readWrite(0, UFFDIO_REGISTER_STRUCT)
export const UFFDIO_UNREGISTER = readOnly(1, UFFDIO_RANGE)
export const UFFDIO_WAKE = readOnly(2, UFFDIO_RANGE)
export const UFFDIO_COPY = readWrite(3, UFFDIO_COPY_STRUCT)
export const UFFDIO_ZEROPAGE = readWrite(4, UFFDIO_ZEROPAGE_STRUCT)
export const UFFDIO_WRITEPROTECT = readWrite(6, UFFDIO_WRITEPROTECT_STRUCT)
/** On /dev/userfaultfd: a new userfaultfd; the flags are the argument itself. */
export const USERFAULTFD_IOC_NEW = ioc('none', UFFDIO, 0, 0)

// What the header's macros come to: a slip in a layout changes its size, and stops us here.
assert.deepEqual(
  [
    UFFDIO_API,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    UFFDIO_WAKE,
    UFFDIO_COPY,
    UFFDIO_ZEROPAGE,
    UFFDIO_WRITEPROTECT,
  ],
  [0xc018aa3f, 0xc020aa00, 0x8010aa01, 0x8010aa02, 0xc028aa03, 0xc020aa04, 0xc018aa06],
)
assert.equal(UFFD_MSG.size, 32)

export const UFFD_API_VERSION = 0xaa
/** Flag of the userfaultfd system call: serve faults of user code only; allowed without any right. */
export const UFFD_USER_MODE_ONLY = 1
/** Modes of UFFDIO_REGISTER. */
export const REGISTER_MODES = { missing: 1, 'write-protect': 2, 'missing+write-protect': 3 } as const
export type RegisterMode = keyof typeof REGISTER_MODES
export const WRITEPROTECT_MODE_WP = 1

/** Bit numbers of UFFDIO_API's features. */
export const FEATURE_BITS = {
  PAGEFAULT_FLAG_WP: 0,
  EVENT_FORK: 1,
  EVENT_REMAP: 2,
  EVENT_REMOVE: 3,
  MISSING_HUGETLBFS: 4,
  MISSING_SHMEM: 5,
  EVENT_UNMAP: 6,
  SIGBUS: 7,
  THREAD_ID: 8,
  MINOR_HUGETLBFS: 9,
  MINOR_SHMEM: 10,
  EXACT_ADDRESS: 11,
  WP_HUGETLBFS_SHMEM: 12,
  WP_UNPOPULATED: 13,
  POISON: 14,
  WP_ASYNC: 15,
  MOVE: 16,
} as const
export type Feature = keyof typeof FEATURE_BITS

/** Bit numbers of the `ioctls` that UFFDIO_API and UFFDIO_REGISTER answer: the ioctls' running numbers. */
export const IOCTL_BITS = {
  REGISTER: 0,
  UNREGISTER: 1,
  WAKE: 2,
  COPY: 3,
  ZEROPAGE: 4,
  MOVE: 5,
  WRITEPROTECT: 6,
  CONTINUE: 7,
  POISON: 8,
  API: 0x3f,
} as const
export type Ioctl = keyof typeof IOCTL_BITS

/** uffd_msg.event */
export const EVENT_KINDS = { 18: 'pagefault', 19: 'fork', 20: 'remap', 21: 'remove', 22: 'unmap' } as const
export type EventKind = (typeof EVENT_KINDS)[keyof typeof EVENT_KINDS]
/** Bits of a page fault's flags. */
export const PAGEFAULT_FLAGS = { write: 1, writeProtect: 2, minor: 4 } as const

/** The names of the bits set in a 64-bit word given as two halves. Bits without a name are left out. */
export function bitNames<N extends string>(
  bits: Readonly<Record<N, number>>,
  low: number,
  high: number,
): Set<N> {
  const isSet = (bit: number) => (((bit < 32 ? low : high) >>> (bit & 31)) & 1) === 1
  return new Set((Object.keys(bits) as N[]).filter((name) => isSet(bits[name])))
}

/** Bits below 32 for names. */
export function bitsOf<N extends string>(bits: Readonly<Record<N, number>>, names: Iterable<N>): number {
  let value = 0
  for (const name of names) value |= 1 << bits[name]
  return value >>> 0
}
