// The C library through koffi: the only place that loads foreign code. Used on every thread; each has its own bindings.
//
// Addresses are JS numbers: user space ends below 2^47, so they are exact, and a number costs no garbage where a
// bigint does. Nothing is loaded before the first call, so that importing the package works on any platform.

import { createRequire } from 'node:module'
import { constants } from 'node:os'
import type * as Koffi from 'koffi'
import { HostUnsupportedError, SystemError } from '../errors.js'

/** Our argument types, the koffi type each becomes, and (in `JsTypes`) what JS passes. */
const C_TYPES = {
  int: 'int',
  ulong: 'unsigned long',
  size: 'size_t',
  off: 'int64_t',
  address: 'uintptr_t',
  path: 'str',
  bytes: 'void *',
} as const

interface JsTypes {
  int: number
  ulong: number
  size: number
  off: number
  address: number
  path: string | null
  bytes: Uint8Array
}
type CType = keyof typeof C_TYPES

interface Signature {
  readonly result: 'int' | 'long' | 'void'
  readonly args: readonly CType[]
  /**
   * A signal may end the call early with EINTR; it is then repeated. Never for close(2): Linux has closed it. Not for what
   * is called for each page: there the caller repeats, which costs no wrapper.
   */
  readonly interruptible?: true
}

// ioctl, fcntl, open and syscall are variadic in C. The Linux ABIs of x86-64 and AArch64 pass integers of variadic
// calls like those of others, so fixed signatures are right and cheaper.
const FUNCTIONS = {
  mmap: { result: 'long', args: ['address', 'size', 'int', 'int', 'int', 'off'] },
  munmap: { result: 'int', args: ['address', 'size'] },
  madvise: { result: 'int', args: ['address', 'size', 'int'] },
  mincore: { result: 'int', args: ['address', 'size', 'address'] },
  mlockall: { result: 'int', args: ['int'] },
  munlockall: { result: 'int', args: [] },
  memfd_create: { result: 'int', args: ['path', 'int'] },
  ftruncate: { result: 'int', args: ['int', 'off'], interruptible: true },
  fallocate: { result: 'int', args: ['int', 'int', 'off', 'off'], interruptible: true },
  memcpy: { result: 'void', args: ['address', 'address', 'size'] },
  memset: { result: 'void', args: ['address', 'int', 'size'] },
  memcmp: { result: 'int', args: ['address', 'address', 'size'] },
  open: { result: 'int', args: ['path', 'int', 'int'], interruptible: true },
  close: { result: 'int', args: ['int'] },
  _exit: { result: 'void', args: ['int'] },
  read: { result: 'long', args: ['int', 'address', 'size'] },
  write: { result: 'long', args: ['int', 'address', 'size'] },
  lseek: { result: 'long', args: ['int', 'ulong', 'int'] },
  ioctl: { result: 'int', args: ['int', 'ulong', 'address'] },
  fcntl: { result: 'int', args: ['int', 'int', 'ulong'] },
  syscall: { result: 'long', args: ['ulong', 'ulong', 'ulong', 'ulong', 'ulong', 'ulong'] },
  sched_setscheduler: { result: 'int', args: ['int', 'int', 'address'] },
  clock_gettime: { result: 'int', args: ['int', 'address'] },
  eventfd: { result: 'int', args: ['int', 'int'] },
  poll: { result: 'int', args: ['address', 'ulong', 'int'] },
  socket: { result: 'int', args: ['int', 'int', 'int'] },
  socketpair: { result: 'int', args: ['int', 'int', 'int', 'address'] },
  bind: { result: 'int', args: ['int', 'address', 'int'] },
  listen: { result: 'int', args: ['int', 'int'] },
  accept4: { result: 'int', args: ['int', 'address', 'address', 'int'], interruptible: true },
  connect: { result: 'int', args: ['int', 'address', 'int'] },
  shutdown: { result: 'int', args: ['int', 'int'] },
  getsockname: { result: 'int', args: ['int', 'address', 'address'] },
  getsockopt: { result: 'int', args: ['int', 'int', 'int', 'address', 'address'] },
  setsockopt: { result: 'int', args: ['int', 'int', 'int', 'address', 'int'] },
  recv: { result: 'long', args: ['int', 'address', 'size', 'int'] },
  send: { result: 'long', args: ['int', 'address', 'size', 'int'] },
  sendBytes: { result: 'long', args: ['int', 'bytes', 'size', 'int'] },
  sendmsg: { result: 'long', args: ['int', 'address', 'int'] },
  pipe2: { result: 'int', args: ['address', 'int'] },
  vmsplice: { result: 'long', args: ['int', 'address', 'ulong', 'int'] },
  splice: { result: 'long', args: ['int', 'address', 'int', 'address', 'size', 'int'] },
  getaddrinfo: { result: 'int', args: ['path', 'path', 'address', 'address'] },
  freeaddrinfo: { result: 'void', args: ['address'] },
} as const satisfies Record<string, Signature>

/** C name where ours differs: the same function bound a second time with other argument types. */
const C_NAMES: Readonly<Record<string, string>> = { sendBytes: 'send' }
const RESULT_TYPES = { int: 'int', long: 'intptr_t', void: 'void' } as const

type Arguments<A extends readonly CType[]> = { -readonly [I in keyof A]: JsTypes[A[I]] }
type Bound<S extends Signature> = (
  ...args: Arguments<S['args']>
) => S['result'] extends 'void' ? void : number
export type Libc = { readonly [N in keyof typeof FUNCTIONS]: Bound<(typeof FUNCTIONS)[N]> }

let koffiModule: typeof Koffi | undefined
let bindings: Libc | undefined

/** @throws HostUnsupportedError on anything but Linux on x86-64 or AArch64. */
export function koffi(): typeof Koffi {
  if (koffiModule !== undefined) return koffiModule
  if (process.platform !== 'linux') {
    throw new HostUnsupportedError(
      `farfault needs Linux: userfaultfd is a Linux system call; this is ${process.platform}`,
    )
  }
  if (process.arch !== 'x64' && process.arch !== 'arm64') {
    throw new HostUnsupportedError(
      `farfault knows the system calls of x64 and arm64; this is ${process.arch}`,
    )
  }
  koffiModule = createRequire(import.meta.url)('koffi') as typeof Koffi
  return koffiModule
}

/** The bound functions. They return what C returns; `check` turns -1 into an error. */
export function libc(): Libc {
  bindings ??= bindAll()
  return bindings
}

function bindAll(): Libc {
  const library = koffi().load(null)
  const bound: Record<string, unknown> = {}
  for (const [name, signature] of Object.entries<Signature>(FUNCTIONS)) {
    const types = signature.args.map((type) => C_TYPES[type])
    const call = library.func(C_NAMES[name] ?? name, RESULT_TYPES[signature.result], types)
    bound[name] = signature.interruptible ? repeatOnEintr(call, signature.args.length) : call
  }
  // An object that grew by computed names is a hash table, slow to read; V8 makes a prototype fast again.
  return Object.create(bound) as Libc
}

type NativeCall = (...args: unknown[]) => number

/** Fixed arities, because a rest parameter would allocate on each call of a hot path. */
function repeatOnEintr(call: NativeCall, arity: number): unknown {
  const interrupted = (result: number) => result === -1 && errno() === EINTR
  function call2(a: unknown, b: unknown): number {
    let result = call(a, b)
    while (interrupted(result)) result = call(a, b)
    return result
  }
  function call3(a: unknown, b: unknown, c: unknown): number {
    let result = call(a, b, c)
    while (interrupted(result)) result = call(a, b, c)
    return result
  }
  function call4(a: unknown, b: unknown, c: unknown, d: unknown): number {
    let result = call(a, b, c, d)
    while (interrupted(result)) result = call(a, b, c, d)
    return result
  }
  const wrapper = [undefined, undefined, call2, call3, call4][arity]
  if (wrapper === undefined) throw new Error(`no EINTR wrapper for ${arity} arguments`)
  return wrapper
}

// The errno table belongs to the platform the process runs on; on others the kernel is never called.
const ERRNO: Readonly<Record<string, number>> = constants.errno
const EINTR = ERRNO.EINTR ?? 4
const NAMES = new Map(Object.entries(ERRNO).map(([name, value]) => [value, name]))
// Two names share a number; the manual pages of what we call use these.
NAMES.set(ERRNO.EAGAIN ?? 11, 'EAGAIN').set(ERRNO.EOPNOTSUPP ?? 95, 'EOPNOTSUPP')

/** The calling thread's errno. Only meaningful directly after a call that returned -1. */
export function errno(): number {
  return koffi().errno()
}

export function errnoName(number: number): string {
  return NAMES.get(number) ?? `errno ${number}`
}

export function errnoOf(name: string): number {
  return ERRNO[name] ?? -1
}

/** `result`, or SystemError with the errno's name if it is -1. */
export function check(call: string, result: number, detail = ''): number {
  if (result === -1) throw new SystemError(call, errnoName(errno()), detail)
  return result
}

/** System calls that the C library has no function for. Numbers: the kernel's syscall tables. */
export const SYSCALL_NUMBERS = {
  userfaultfd: { x64: 323, arm64: 282 },
  io_setup: { x64: 206, arm64: 0 },
  io_destroy: { x64: 207, arm64: 1 },
  io_getevents: { x64: 208, arm64: 4 },
  io_submit: { x64: 209, arm64: 2 },
} as const

/** Arguments that the call does not have count for nothing. */
export function syscall(name: keyof typeof SYSCALL_NUMBERS, a: number, b = 0, c = 0, d = 0, e = 0): number {
  return libc().syscall(SYSCALL_NUMBERS[name][process.arch as 'x64' | 'arm64'], a, b, c, d, e)
}

export function hex(address: number): string {
  return `0x${address.toString(16)}`
}
