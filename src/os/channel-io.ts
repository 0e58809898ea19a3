// Bytes through a connected socket, by descriptor. Engine threads: `readSome` and `sendAll` block, the `try` ones never.
//
// Nothing here allocates: message structures are made once a thread.

import { ChannelError, SystemError } from '../errors.js'
import { check, errno, errnoName, errnoOf, libc } from './libc.js'
import { LINUX, MSGHDR } from './linux-abi.js'
import { type NativeBuffer, nativeBuffer, setU64 } from './memory.js'

/** NOSIGNAL: a closed peer is an error to be returned, not a signal. */
const { MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR, SIOCOUTQ } = LINUX

const EAGAIN = errnoOf('EAGAIN')
const EINTR = errnoOf('EINTR')
const EFAULT = errnoOf('EFAULT')

/** What the `try` functions answer when they would have to wait. A number, as all their answers: a guest waits for them. */
export const AGAIN = -1
/** What the peer or the network can do to us. Anything else is a fault of ours or of the host. */
const LOST = [
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ECONNABORTED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENETDOWN',
  'ENOTCONN',
]
const LOST_NUMBERS = new Set(LOST.map(errnoOf))

/** The error for a failed transfer, from errno: ChannelError if the connection is lost, otherwise SystemError. */
function transferError(call: string, fd: number): Error {
  const number = errno()
  const name = errnoName(number)
  if (LOST_NUMBERS.has(number))
    return new ChannelError(`connection lost: ${call} on descriptor ${fd}: ${name}`)
  if (number === EFAULT)
    return new SystemError(call, name, 'what was to be sent cannot be read: has its file been cut off?')
  return new SystemError(call, name, `descriptor ${fd}`)
}

/** After a call that returned -1: a signal ended it, and it is to be repeated. @throws what else ended it. */
function interruptedOrThrow(call: string, fd: number): void {
  if (errno() !== EINTR) throw transferError(call, fd)
}

/** Block until there are bytes and read at most `max` of them to `address`; 0 at the end of the stream. */
export function readSome(fd: number, address: number, max: number): number {
  for (;;) {
    const bytes = libc().recv(fd, address, max, 0)
    if (bytes !== -1) return bytes
    interruptedOrThrow('recv', fd)
  }
}

/** The same without blocking; 0 is the end of the stream, AGAIN when nothing has come. */
export function tryRead(fd: number, address: number, max: number): number {
  const bytes = libc().recv(fd, address, max, MSG_DONTWAIT)
  return bytes === -1 ? againOrThrow('recv', fd) : bytes
}

/** After a call that returned -1. */
export function againOrThrow(call: string, fd: number): typeof AGAIN {
  const number = errno()
  if (number === EAGAIN || number === EINTR) return AGAIN
  throw transferError(call, fd)
}

/** Block until the kernel has taken all bytes. */
export function sendAll(fd: number, bytes: Uint8Array): void {
  const { sendBytes } = libc()
  let done = 0
  while (done < bytes.length) {
    const rest = done === 0 ? bytes : bytes.subarray(done)
    const sent = sendBytes(fd, rest, rest.length, MSG_NOSIGNAL)
    if (sent === -1) interruptedOrThrow('send', fd)
    else done += sent
  }
}

/** The same for bytes at an address, which costs less a call. */
export function sendWhole(fd: number, address: number, length: number): void {
  const { send } = libc()
  for (let done = 0; done < length; ) {
    const sent = send(fd, address + done, length - done, MSG_NOSIGNAL)
    if (sent === -1) interruptedOrThrow('send', fd)
    else done += sent
  }
}

/** Bytes taken by the kernel, perhaps fewer than `length`, or AGAIN. */
export function trySend(fd: number, address: number, length: number): number {
  const sent = libc().send(fd, address, length, MSG_DONTWAIT | MSG_NOSIGNAL)
  return sent === -1 ? againOrThrow('send', fd) : sent
}

let message: NativeBuffer | undefined

/**
 * Send `count` (at most 1024) struct iovec, {u64 address, u64 length} each, from `iovecAddress`.
 * Answers the bytes taken, perhaps fewer than all, and perhaps ending in the middle of an element; or AGAIN.
 */
export function trySendVector(fd: number, iovecAddress: number, count: number): number {
  message ??= nativeBuffer(MSGHDR.size)
  setU64(message.words, MSGHDR.word.msg_iov, iovecAddress)
  setU64(message.words, MSGHDR.word.msg_iovlen, count)
  const sent = libc().sendmsg(fd, message.address, MSG_DONTWAIT | MSG_NOSIGNAL)
  return sent === -1 ? againOrThrow('sendmsg', fd) : sent
}

let queued: NativeBuffer | undefined

/** Bytes given to the kernel that the peer's kernel does not have yet. */
export function unsentBytes(fd: number): number {
  queued ??= nativeBuffer(8)
  check('ioctl SIOCOUTQ', libc().ioctl(fd, SIOCOUTQ, queued.address), `descriptor ${fd}`)
  return queued.words[0]!
}

let one: NativeBuffer | undefined

/** Acknowledge at once what has been read from a TCP socket: a peer that joins small messages waits for that with its next. */
export function acknowledge(fd: number): void {
  if (one === undefined) {
    one = nativeBuffer(8)
    one.words[0] = 1
  }
  libc().setsockopt(fd, LINUX.IPPROTO_TCP, LINUX.TCP_QUICKACK, one.address, 4) // no harm if it fails
}

/** End both directions. A thread that is blocked on the descriptor wakes up and sees the end. Safe at any time. */
export function shutdownChannel(fd: number): void {
  if (libc().shutdown(fd, SHUT_RDWR) === -1 && errno() !== errnoOf('ENOTCONN'))
    throw transferError('shutdown', fd)
}

/** Close once, and only when no other thread uses the number: the kernel gives it to the next opener. */
export function closeFd(fd: number): void {
  check('close', libc().close(fd), `descriptor ${fd}`)
}

/** End both directions and close. @param fd -1: there is none */
export function releaseChannel(fd: number): void {
  if (fd < 0) return
  shutdownChannel(fd)
  closeFd(fd)
}
