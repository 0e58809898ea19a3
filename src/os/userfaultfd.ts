// userfaultfd: missing pages of registered ranges make their toucher wait until this process places them.
// The main thread opens and closes it; any thread works on it through `userfaultfdFromFd` with structures of its own.
//
// Closing it, or unregistering a range, lets waiting threads go on with zeros in the pages still missing.

import assert from 'node:assert'
import { HostUnsupportedError, SystemError } from '../errors.js'
import { check, errno, errnoName, errnoOf, hex, libc } from './libc.js'
import { getS64, nativeBuffer, setU64 } from './memory.js'
import * as abi from './userfaultfd-abi.js'
import type { EventBatch } from './userfaultfd-events.js'
import { openDescriptor } from './userfaultfd-open.js'

/**
 * What became of a placement. Each is part of normal life:
 * - `placed`: the whole range is present now, and its waiters have been woken;
 * - `already`: the first page of the range was present before (EEXIST). Nothing was placed, nobody was woken;
 * - `again`: `lastBytes` bytes at the start were placed, the rest was not, because the address space was changing or
 *   because a later page was there already. Go on with the rest: it answers `already` in the latter case;
 * - `gone`: the range is not registered any more, or its process has ended (ENOENT, ESRCH).
 */
export type Placement = 'placed' | 'already' | 'again' | 'gone'

/** The operations, usable on any thread of the process. Not to be shared between threads: structures are reused. */
export interface UserfaultfdOperations {
  readonly fd: number
  /** Bytes done by the last `copy` or `zeropage`. */
  readonly lastBytes: number
  /** Watch a range. Its pages that are present stay so; answers the operations it allows. @throws SystemError */
  register(address: number, length: number, mode: abi.RegisterMode): Set<abi.Ioctl>
  /** Stop watching. Waiting threads go on and read zeros where nothing was placed. @throws SystemError */
  unregister(address: number, length: number): void
  /** Let threads that wait on a page of the range look again. @throws SystemError */
  wake(address: number, length: number): void
  /** Place a copy of `length` bytes. `destination` and `length` are page aligned, `source` need not be. */
  copy(destination: number, source: number, length: number): Placement
  /** Map zeros. Not on hugetlb memory (EINVAL): copy zeros there. */
  zeropage(destination: number, length: number): Placement
  /** Arm or lift write protection of a registered range. `again` when the address space was changing. */
  writeProtect(address: number, length: number, on: boolean): 'done' | 'again'
  /** Read the waiting events into `events`; their number, 0 if there are none. Never blocks. */
  readEvents(events: EventBatch): number
}

export interface Userfaultfd extends UserfaultfdOperations {
  /** All features of the running kernel, enabled or not. */
  readonly features: ReadonlySet<abi.Feature>
  readonly ioctls: ReadonlySet<abi.Ioctl>
  /** A system call that touches a missing page fails with EFAULT instead of waiting. */
  readonly userModeOnly: boolean
  /** Idempotent. */
  close(): void
}

export interface OpenOptions {
  /** Features to enable. */
  readonly features: readonly abi.Feature[]
  /**
   * Serve only faults of user code, which needs no right. Default: only if the process has no right to more.
   * `false` fails instead.
   */
  readonly userModeOnly?: boolean
}

/** @throws HostUnsupportedError if this process may not open one, or the kernel lacks a feature. */
export function openUserfaultfd(options: OpenOptions): Userfaultfd {
  // A descriptor can shake hands once, and asking for a feature that is not there spoils it: ask on another one.
  const probe = openDescriptor(options.userModeOnly)
  const offered = finallyClose(probe.fd, () => handshake(probe.fd, []))
  const missing = options.features.filter((feature) => !offered.features.has(feature))
  if (missing.length > 0) {
    throw new HostUnsupportedError(
      `this kernel's userfaultfd lacks ${missing.join(', ')}; a newer kernel has it`,
    )
  }
  const { fd, userModeOnly } = openDescriptor(options.userModeOnly)
  try {
    handshake(fd, options.features)
  } catch (error) {
    libc().close(fd)
    throw error
  }
  let open = true
  function close(): void {
    if (open) libc().close(fd)
    open = false
  }
  return Object.assign(userfaultfdFromFd(fd), { ...offered, userModeOnly, close })
}

function finallyClose<T>(fd: number, body: () => T): T {
  try {
    return body()
  } finally {
    libc().close(fd)
  }
}

function handshake(fd: number, features: readonly abi.Feature[]) {
  const { address, words } = nativeBuffer(abi.UFFDIO_API_STRUCT.size)
  const at = abi.UFFDIO_API_STRUCT.word
  words[at.api] = abi.UFFD_API_VERSION
  words[at.features] = abi.bitsOf(abi.FEATURE_BITS, features)
  check('UFFDIO_API', libc().ioctl(fd, abi.UFFDIO_API, address), `features ${features.join(', ') || 'none'}`)
  return {
    features: abi.bitNames(abi.FEATURE_BITS, words[at.features]!, words[at.features + 1]!),
    ioctls: abi.bitNames(abi.IOCTL_BITS, words[at.ioctls]!, words[at.ioctls + 1]!),
  }
}

/** The same userfaultfd with structures of the calling thread. */
export function userfaultfdFromFd(fd: number): UserfaultfdOperations {
  const { ioctl, read } = libc()
  const range = nativeBuffer(abi.UFFDIO_RANGE.size)
  const register = nativeBuffer(abi.UFFDIO_REGISTER_STRUCT.size)
  const protect = nativeBuffer(abi.UFFDIO_WRITEPROTECT_STRUCT.size)
  const copy = nativeBuffer(abi.UFFDIO_COPY_STRUCT.size)
  const zero = nativeBuffer(abi.UFFDIO_ZEROPAGE_STRUCT.size)
  const inCopy = abi.UFFDIO_COPY_STRUCT.word
  const inZero = abi.UFFDIO_ZEROPAGE_STRUCT.word
  const inRegister = abi.UFFDIO_REGISTER_STRUCT.word

  function onRange(call: string, request: number, address: number, length: number): void {
    setU64(range.words, 0, address)
    setU64(range.words, 2, length)
    check(call, ioctl(fd, request, range.address), `${hex(address)} + ${length}`)
  }

  const operations = {
    fd,
    lastBytes: 0,
    register(address: number, length: number, mode: abi.RegisterMode) {
      setU64(register.words, inRegister.start, address)
      setU64(register.words, inRegister.len, length)
      setU64(register.words, inRegister.mode, abi.REGISTER_MODES[mode])
      const result = ioctl(fd, abi.UFFDIO_REGISTER, register.address)
      check('UFFDIO_REGISTER', result, `${mode}, ${hex(address)} + ${length}`)
      return abi.bitNames(
        abi.IOCTL_BITS,
        register.words[inRegister.ioctls]!,
        register.words[inRegister.ioctls + 1]!,
      )
    },
    unregister: (address: number, length: number) =>
      onRange('UFFDIO_UNREGISTER', abi.UFFDIO_UNREGISTER, address, length),
    wake: (address: number, length: number) => onRange('UFFDIO_WAKE', abi.UFFDIO_WAKE, address, length),
    copy(destination: number, source: number, length: number): Placement {
      const words = copy.words
      setU64(words, inCopy.dst, destination)
      setU64(words, inCopy.src, source)
      setU64(words, inCopy.len, length)
      setU64(words, inCopy.copy, 0)
      const result = ioctl(fd, abi.UFFDIO_COPY, copy.address)
      return placement('UFFDIO_COPY', result, getS64(words, inCopy.copy), destination, length)
    },
    zeropage(destination: number, length: number): Placement {
      const words = zero.words
      setU64(words, inZero.start, destination)
      setU64(words, inZero.len, length)
      setU64(words, inZero.zeropage, 0)
      const result = ioctl(fd, abi.UFFDIO_ZEROPAGE, zero.address)
      return placement('UFFDIO_ZEROPAGE', result, getS64(words, inZero.zeropage), destination, length)
    },
    writeProtect(address: number, length: number, on: boolean) {
      setU64(protect.words, 0, address)
      setU64(protect.words, 2, length)
      setU64(protect.words, 4, on ? abi.WRITEPROTECT_MODE_WP : 0)
      if (ioctl(fd, abi.UFFDIO_WRITEPROTECT, protect.address) === 0) return 'done'
      if (errno() === EAGAIN) return 'again'
      throw new SystemError('UFFDIO_WRITEPROTECT', errnoName(errno()), `${hex(address)} + ${length}`)
    },
    readEvents(events: EventBatch): number {
      const bytes = read(fd, events.bufferAddress, events.bufferBytes)
      if (bytes > 0) return events.accept(bytes)
      if (bytes === -1 && (errno() === EAGAIN || errno() === EINTR)) return 0
      throw new SystemError('read userfaultfd', bytes === 0 ? 'end of file' : errnoName(errno()))
    },
  }

  /**
   * The one reader of a placement's result. The kernel stores a *signed* count: bytes done, or a negative errno. It
   * stores nothing when it refuses early, so a zero left there means that the ioctl's own errno counts.
   */
  function placement(call: string, result: number, done: number, address: number, length: number): Placement {
    operations.lastBytes = Math.max(done, 0)
    if (result === 0) {
      if (done !== length) assert.fail(`${call} succeeded with ${done} of ${length} bytes`)
      return 'placed'
    }
    if (done > 0) return 'again'
    const number = done < 0 ? -done : errno()
    if (number === EEXIST) return 'already'
    if (number === EAGAIN) return 'again'
    if (number === ENOENT || number === ESRCH) return 'gone'
    throw new SystemError(call, errnoName(number), `${hex(address)} + ${length}`)
  }

  return operations as UserfaultfdOperations
}

const EAGAIN = errnoOf('EAGAIN')
const EINTR = errnoOf('EINTR')
const EEXIST = errnoOf('EEXIST')
const ENOENT = errnoOf('ENOENT')
const ESRCH = errnoOf('ESRCH')
