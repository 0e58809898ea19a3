// The tables of src/os against the C headers of this system. Newer names that its headers lack (PAGEMAP_SCAN, WP_ASYNC,
// TCP_RTO_MIN_US) are checked by behaviour, against the running kernel, in src/os/pagemap.test.ts and channel.test.ts.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { SYSCALL_NUMBERS } from '../../src/os/libc.js'
import * as linux from '../../src/os/linux-abi.js'
import * as pagemap from '../../src/os/pagemap.js'
import * as uffd from '../../src/os/userfaultfd-abi.js'

type Numbers = Record<string, number>

const STRUCTS: Record<string, linux.Layout> = {
  'struct uffdio_api': uffd.UFFDIO_API_STRUCT,
  'struct uffdio_range': uffd.UFFDIO_RANGE,
  'struct uffdio_register': uffd.UFFDIO_REGISTER_STRUCT,
  'struct uffdio_copy': uffd.UFFDIO_COPY_STRUCT,
  'struct uffdio_zeropage': uffd.UFFDIO_ZEROPAGE_STRUCT,
  'struct uffdio_writeprotect': uffd.UFFDIO_WRITEPROTECT_STRUCT,
  'struct uffd_msg': uffd.UFFD_MSG,
  'struct pm_scan_arg': pagemap.PM_SCAN_ARG,
  'struct page_region': pagemap.PAGE_REGION,
  'struct timespec': linux.TIMESPEC,
  'struct pollfd': linux.POLLFD,
  'struct msghdr': linux.MSGHDR,
  'struct addrinfo': linux.ADDRINFO,
  'struct iocb': linux.IOCB,
  'struct io_event': linux.IO_EVENT,
  'struct tcp_info': linux.TCP_INFO,
}

/** Where C's name of a field is not ours: the arms of the union in uffd_msg. */
const FIELD_NAMES: Record<string, string> = {
  'arg.pagefault.flags': 'flags',
  'arg.pagefault.address': 'address',
  'arg.pagefault.feat.ptid': 'ptid',
  'arg.remove.start': 'flags',
  'arg.remap.from': 'flags',
}

const withPrefix = (prefix: string, names: Readonly<Record<string, number>>, value = (n: number) => n) =>
  Object.fromEntries(Object.entries(names).map(([name, number]) => [prefix + name, value(number)]))

/** What our tables say, by C's names. */
const OURS: Numbers = {
  ...linux.LINUX,
  ...withPrefix('UFFD_FEATURE_', uffd.FEATURE_BITS, (bit) => 2 ** bit),
  ...withPrefix('_UFFDIO_', uffd.IOCTL_BITS),
  ...withPrefix('PAGE_IS_', pagemap.PAGE_IS),
  UFFDIO_API: uffd.UFFDIO_API,
  UFFDIO_REGISTER: uffd.UFFDIO_REGISTER,
  UFFDIO_UNREGISTER: uffd.UFFDIO_UNREGISTER,
  UFFDIO_WAKE: uffd.UFFDIO_WAKE,
  UFFDIO_COPY: uffd.UFFDIO_COPY,
  UFFDIO_ZEROPAGE: uffd.UFFDIO_ZEROPAGE,
  UFFDIO_WRITEPROTECT: uffd.UFFDIO_WRITEPROTECT,
  UFFD_API: uffd.UFFD_API_VERSION,
  UFFD_USER_MODE_ONLY: uffd.UFFD_USER_MODE_ONLY,
  USERFAULTFD_IOC_NEW: uffd.USERFAULTFD_IOC_NEW,
  UFFDIO_REGISTER_MODE_MISSING: uffd.REGISTER_MODES.missing,
  UFFDIO_REGISTER_MODE_WP: uffd.REGISTER_MODES['write-protect'],
  UFFDIO_WRITEPROTECT_MODE_WP: uffd.WRITEPROTECT_MODE_WP,
  ...Object.fromEntries(
    Object.entries(uffd.EVENT_KINDS).map(([id, k]) => [`UFFD_EVENT_${k.toUpperCase()}`, +id]),
  ),
  UFFD_PAGEFAULT_FLAG_WRITE: uffd.PAGEFAULT_FLAGS.write,
  UFFD_PAGEFAULT_FLAG_WP: uffd.PAGEFAULT_FLAGS.writeProtect,
  UFFD_PAGEFAULT_FLAG_MINOR: uffd.PAGEFAULT_FLAGS.minor,
  PAGEMAP_SCAN: pagemap.PAGEMAP_SCAN,
  PM_SCAN_WP_MATCHING: pagemap.PM_SCAN_WP_MATCHING,
  PM_SCAN_CHECK_WPASYNC: pagemap.PM_SCAN_CHECK_WPASYNC,
  ...Object.fromEntries(
    Object.entries(SYSCALL_NUMBERS).map(([name, of]) => [`SYS_${name}`, of[process.arch as 'x64' | 'arm64']]),
  ),
  'sizeof struct sockaddr_un': linux.SOCKADDR_UN_PATH.at + linux.SOCKADDR_UN_PATH.size,
  'struct sockaddr_un.sun_path': linux.SOCKADDR_UN_PATH.at,
  'struct sockaddr_in.sin_port': linux.SOCKADDR_PORT_AT,
  'struct sockaddr_in6.sin6_port': linux.SOCKADDR_PORT_AT,
  'struct sockaddr_in.sin_addr': linux.SOCKADDR_IN_ADDRESS_AT,
  'struct sockaddr_in6.sin6_addr': linux.SOCKADDR_IN6_ADDRESS_AT,
  'sizeof struct sockaddr_storage': linux.SOCKADDR_STORAGE_BYTES,
}

/** Not in the headers of Linux 6.1: may be absent from what C prints. */
const NEWER =
  /^(UFFD_FEATURE_(WP_UNPOPULATED|POISON|WP_ASYNC|MOVE)|_UFFDIO_(MOVE|POISON)|USERFAULTFD_IOC_NEW|PAGE|PM_|TCP_RTO|TCP_DELACK)/

function ourNumber(name: string): number | undefined {
  if (name in OURS) return OURS[name]
  const size = /^sizeof (.*)$/.exec(name)?.[1]
  if (size !== undefined) return STRUCTS[size]?.size
  const [, struct, field] = /^(struct \w+)\.(.*)$/.exec(name) ?? []
  return STRUCTS[struct ?? '']?.at[FIELD_NAMES[field!] ?? field!]
}

function hasCompiler(): boolean {
  return (process.env.PATH ?? '').split(':').some((folder) => existsSync(join(folder, 'cc')))
}

/** The compiled test lies in dist/; the C source does not. */
const SOURCE = join(import.meta.dirname, '../../..', 'test/abi/abi.c')

test('tables agree with the C headers', { timeout: 180_000 }, (t) => {
  if (!hasCompiler() && !process.env.CI) return t.skip('no C compiler (cc) on this machine')
  const folder = mkdtempSync(join(tmpdir(), 'farfault-abi-'))
  t.after(() => rmSync(folder, { recursive: true }))
  execFileSync('cc', ['-Wall', '-Werror', '-o', join(folder, 'abi'), SOURCE])
  const theirs = JSON.parse(execFileSync(join(folder, 'abi'), { encoding: 'utf8' })) as Numbers

  const expected = Object.keys(theirs).map((name) => [name, ourNumber(name)])
  assert.deepEqual(Object.entries(theirs), expected)
  const unchecked = Object.keys(OURS).filter((name) => !(name in theirs) && !NEWER.test(name))
  assert.deepEqual(unchecked, [], 'abi.c does not print these')
})
