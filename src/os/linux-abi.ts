// Linux's constants and structures by their C names, and how structures and ioctl numbers are laid out. Pure; any thread.
// One table serves x86-64 and AArch64, which agree on all of these. test/abi compares it with the C headers.

import assert from 'node:assert'

export const LINUX = {
  // mmap(2), madvise(2), memfd_create(2), mlockall(2), fallocate(2)
  PROT_READ: 1,
  PROT_WRITE: 2,
  MAP_SHARED: 1,
  MAP_PRIVATE: 2,
  MAP_ANONYMOUS: 0x20,
  MAP_NORESERVE: 0x4000,
  MAP_HUGETLB: 0x40000,
  MAP_HUGE_SHIFT: 26,
  MFD_CLOEXEC: 1,
  MFD_HUGETLB: 4,
  MADV_WILLNEED: 3,
  MADV_DONTNEED: 4,
  MADV_HUGEPAGE: 14,
  MADV_NOHUGEPAGE: 15,
  MADV_POPULATE_READ: 22,
  MCL_CURRENT: 1,
  MCL_FUTURE: 2,
  FALLOC_FL_KEEP_SIZE: 1,
  FALLOC_FL_PUNCH_HOLE: 2,
  // open(2), fcntl(2), pipe(2), splice(2), eventfd(2), clock_gettime(2)
  O_RDONLY: 0,
  O_RDWR: 2,
  O_NONBLOCK: 0x800,
  O_CLOEXEC: 0x80000,
  F_GETFL: 3,
  F_SETFL: 4,
  F_DUPFD_CLOEXEC: 1030,
  F_SETPIPE_SZ: 1031,
  SPLICE_F_NONBLOCK: 2,
  EFD_NONBLOCK: 0x800,
  EFD_CLOEXEC: 0x80000,
  CLOCK_REALTIME: 0,
  CLOCK_MONOTONIC: 1,
  // linux/aio_abi.h
  IOCB_CMD_PWRITE: 1,
  // sched(7)
  SCHED_FIFO: 1,
  SCHED_RESET_ON_FORK: 0x4000_0000,
  // poll(2)
  POLLIN: 1,
  POLLOUT: 4,
  POLLERR: 8,
  POLLHUP: 0x10,
  POLLNVAL: 0x20,
  // socket(2) and its kin, getaddrinfo(3), tcp(7), unix(7)
  AF_UNIX: 1,
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_NONBLOCK: 0x800,
  SOCK_CLOEXEC: 0x80000,
  SOL_SOCKET: 1,
  SO_REUSEADDR: 2,
  SO_ERROR: 4,
  SO_SNDBUF: 7,
  SO_DOMAIN: 39,
  SO_PEERCRED: 17,
  SO_KEEPALIVE: 9,
  SO_ACCEPTCONN: 30,
  IPPROTO_TCP: 6,
  TCP_NODELAY: 1,
  TCP_KEEPIDLE: 4,
  TCP_KEEPINTVL: 5,
  TCP_KEEPCNT: 6,
  TCP_INFO: 11,
  TCP_QUICKACK: 12,
  TCP_THIN_LINEAR_TIMEOUTS: 16,
  TCP_USER_TIMEOUT: 18,
  TCP_RTO_MIN_US: 45,
  TCP_DELACK_MAX_US: 46,
  MSG_DONTWAIT: 0x40,
  MSG_NOSIGNAL: 0x4000,
  SHUT_RDWR: 2,
  SIOCOUTQ: 0x5411,
  AI_PASSIVE: 1,
} as const

type FieldType = 'u8' | 'u16' | 'u32' | 'u64' | 's16' | 's32' | 's64'
const FIELD_BYTES: Record<FieldType, number> = { u8: 1, u16: 2, u32: 4, u64: 8, s16: 2, s32: 4, s64: 8 }

export interface Layout<F extends string = string> {
  /** Bytes. */
  readonly size: number
  /** Byte offset of each field. */
  readonly at: Readonly<Record<F, number>>
  /** Index of each field in 32-bit words; for smaller fields, of the word they lie in. */
  readonly word: Readonly<Record<F, number>>
}

/** Fields in order with natural alignment, as a C compiler lays them out. */
export function layout<F extends string>(fields: Readonly<Record<F, FieldType>>): Layout<F> {
  const at = {} as Record<F, number>
  const word = {} as Record<F, number>
  let end = 0
  let alignment = 1
  for (const [name, type] of Object.entries(fields) as [F, FieldType][]) {
    const size = FIELD_BYTES[type]
    alignment = Math.max(alignment, size)
    at[name] = Math.ceil(end / size) * size
    word[name] = at[name] >> 2
    end = at[name] + size
  }
  return { size: Math.ceil(end / alignment) * alignment, at, word }
}

export const TIMESPEC = layout({ tv_sec: 's64', tv_nsec: 's64' })
export const POLLFD = layout({ fd: 's32', events: 's16', revents: 's16' })
export const MSGHDR = layout({
  msg_name: 'u64',
  msg_namelen: 'u32',
  msg_iov: 'u64',
  msg_iovlen: 'u64',
  msg_control: 'u64',
  msg_controllen: 'u64',
  msg_flags: 's32',
})
export const IOCB = layout({
  ...{ aio_data: 'u64', aio_key: 'u32', aio_rw_flags: 'u32', aio_lio_opcode: 'u16', aio_reqprio: 's16' },
  ...{ aio_fildes: 'u32', aio_buf: 'u64', aio_nbytes: 'u64', aio_offset: 's64', aio_reserved2: 'u64' },
  ...{ aio_flags: 'u32', aio_resfd: 'u32' },
})
export const IO_EVENT = layout({ data: 'u64', obj: 'u64', res: 's64', res2: 's64' })
/** As far as it is read. */
export const TCP_INFO = layout({
  states_and_options: 'u64',
  ...{ tcpi_rto: 'u32', tcpi_ato: 'u32', tcpi_snd_mss: 'u32', tcpi_rcv_mss: 'u32', tcpi_unacked: 'u32' },
  ...{ tcpi_sacked: 'u32', tcpi_lost: 'u32', tcpi_retrans: 'u32', tcpi_fackets: 'u32' },
  ...{ tcpi_last_data_sent: 'u32', tcpi_last_ack_sent: 'u32', tcpi_last_data_recv: 'u32' },
  ...{ tcpi_last_ack_recv: 'u32', tcpi_pmtu: 'u32', tcpi_rcv_ssthresh: 'u32', tcpi_rtt: 'u32' },
})
export const ADDRINFO = layout({
  ai_flags: 's32',
  ai_family: 's32',
  ai_socktype: 's32',
  ai_protocol: 's32',
  ai_addrlen: 'u32',
  ai_addr: 'u64',
  ai_canonname: 'u64',
  ai_next: 'u64',
})
/** struct sockaddr_un, up to its path. */
export const SOCKADDR_UN_PATH = { at: 2, size: 108 } as const
/** struct sockaddr_in and sockaddr_in6 have the port, big-endian, at the same place. */
export const SOCKADDR_PORT_AT = 2
/** Their addresses, 4 and 16 bytes. */
export const SOCKADDR_IN_ADDRESS_AT = 4
export const SOCKADDR_IN6_ADDRESS_AT = 8
/** struct sockaddr_storage holds any address. */
export const SOCKADDR_STORAGE_BYTES = 128

/** Directions in an ioctl's number. */
export const IOC = { none: 0, write: 1, read: 2, readWrite: 3 } as const

/** An ioctl's number: direction, size of its argument, type and running number (asm-generic/ioctl.h). */
export function ioc(direction: keyof typeof IOC, type: number, number: number, size: number): number {
  assert(size < 1 << 14 && number < 256 && type < 256)
  return ((IOC[direction] << 30) | (size << 16) | (type << 8) | number) >>> 0
}
