// Making byte channels: listen, accept, connect; descriptors of connected, blocking stream sockets come out.
// Engine threads, because accepting and connecting block; a wake descriptor ends the wait. `listenOn` does not block.

import { fstatSync, statSync, unlinkSync } from 'node:fs'
import { ChannelError, SystemError, UsageError } from '../errors.js'
import { check, errno, errnoName, errnoOf, libc } from './libc.js'
import { LINUX, TCP_INFO } from './linux-abi.js'
import { nativeBuffer } from './memory.js'
import { createPoll, POLL_EVENTS } from './poll.js'
import { boundPort, isBoundToLoopback, resolve, type SocketAddress } from './socket-address.js'
import { type ChannelUri, formatUri, parseUri } from './uri.js'

export {
  AGAIN,
  acknowledge,
  closeFd,
  readSome,
  releaseChannel,
  sendAll,
  sendWhole,
  shutdownChannel,
  tryRead,
  trySend,
  trySendVector,
  unsentBytes,
} from './channel-io.js'
export { type ChannelUri, formatUri, parseUri } from './uri.js'

const { SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET } = LINUX
/** Connections waiting to be accepted: two are used at most (postcopy-preempt), the others are mistakes. */
const BACKLOG = 4

export interface Listener {
  readonly fd: number
  /** With the port that the kernel chose if 0 was asked for. */
  readonly uri: string
  /** Idempotent. Removes a unix socket's path. */
  close(): void
}

/** Listen. `fd:N` may be a listening socket, or a connected one, which `acceptOn` hands out. @throws ChannelError */
export function listenOn(text: string | ChannelUri): Listener {
  const uri = typeof text === 'string' ? parseUri(text) : text
  if (uri.kind === 'fd') {
    assertSocket(uri.fd)
    return listener(uri.fd, uri)
  }
  if (uri.kind === 'unix') removeStaleSocket(uri.path)
  let error: Error | undefined
  for (const address of resolve(uri, true)) {
    // Non-blocking: who connected may have gone before accept, which must not wait for the next one then.
    const fd = openSocket(address.family, SOCK_NONBLOCK)
    setOption(fd, SOL_SOCKET, LINUX.SO_REUSEADDR)
    const { buffer, length } = address
    if (libc().bind(fd, buffer.address, length) === 0 && libc().listen(fd, BACKLOG) === 0) {
      return listener(fd, uri.kind === 'tcp' ? { ...uri, port: boundPort(fd) ?? uri.port } : uri)
    }
    error ??= listenError(uri)
    libc().close(fd)
  }
  throw error ?? new ChannelError(`${formatUri(uri)}: no address to listen on`)
}

function listener(fd: number, uri: ChannelUri): Listener {
  let open = true
  return {
    fd,
    uri: formatUri(uri),
    close() {
      if (!open) return
      open = false
      libc().close(fd)
      if (uri.kind === 'unix') removePath(uri.path)
    },
  }
}

function listenError(uri: ChannelUri): Error {
  const name = errnoName(errno())
  const advice: Readonly<Record<string, string>> = {
    EADDRINUSE: 'something listens there already; choose another port, or 0 for any',
    EADDRNOTAVAIL: 'this host has no such address',
    EACCES: 'not allowed; ports below 1024 need a right, paths a writable directory',
    ENOENT: 'the directory does not exist',
  }
  return new ChannelError(
    `cannot listen on ${formatUri(uri)}: ${name}${advice[name] ? ` (${advice[name]})` : ''}`,
  )
}

/** A path left behind by a process that died is removed; one that somebody serves, or that is no socket, is not. */
function removeStaleSocket(path: string): void {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) return
  if (!stat.isSocket()) throw new UsageError(`unix:${path}: the path exists and is not a socket`)
  const [address] = resolve({ kind: 'unix', path }, false)
  const fd = openSocket(address!.family, SOCK_NONBLOCK)
  const refused =
    libc().connect(fd, address!.buffer.address, address!.length) === -1 && errno() === errnoOf('ECONNREFUSED')
  libc().close(fd)
  if (!refused) throw new ChannelError(`cannot listen on unix:${path}: another process listens there`)
  removePath(path)
}

function removePath(path: string): void {
  try {
    unlinkSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}

/**
 * Block until somebody connects; the new descriptor, or `woken` when `wakeFd` becomes readable.
 * @throws ChannelError after `timeoutMs` (default: no limit)
 */
export function acceptOn(listenFd: number, wakeFd: number, timeoutMs = -1): number | 'woken' {
  // Handed in connected: the caller owns the answer, so it gets a descriptor of its own.
  if (!acceptsConnections(listenFd)) return duplicate(listenFd)
  const poll = createPoll(2)
  poll.set(0, listenFd, POLL_EVENTS.in)
  poll.set(1, wakeFd, POLL_EVENTS.in)
  for (;;) {
    if (poll.wait(timeoutMs) === 0) throw new ChannelError(`nobody connected within ${timeoutMs} ms`)
    if (poll.readable(1)) return 'woken'
    const fd = libc().accept4(listenFd, 0, 0, SOCK_CLOEXEC)
    if (fd !== -1) return prepareAccepted(fd)
    // The one who knocked has gone again before we opened.
    const name = errnoName(errno())
    if (name !== 'ECONNABORTED' && name !== 'EAGAIN') throw new SystemError('accept4', name)
  }
}

/** Who waits there to be accepted, without blocking; undefined: nobody. */
export function tryAccept(listenFd: number): number | undefined {
  const poll = createPoll(1)
  poll.set(0, listenFd, POLL_EVENTS.in)
  if (poll.wait(0) === 0) return undefined
  const fd = libc().accept4(listenFd, 0, 0, SOCK_CLOEXEC)
  return fd === -1 ? undefined : prepareAccepted(fd)
}

/** More than one can connect there: it was not handed in connected. */
export const acceptsConnections = (fd: number): boolean => getOption(fd, LINUX.SO_ACCEPTCONN) !== 0

/**
 * The process that listened where this unix socket is connected to, unix(7). Undefined where that is not to be known, and for one of
 * another user: what is done for it is done with our rights.
 */
export function peerProcess(fd: number): number | undefined {
  if (getOption(fd, LINUX.SO_DOMAIN) !== LINUX.AF_UNIX) return undefined
  const [pid = 0, user] = readOption(fd, LINUX.SO_PEERCRED, 12) // struct ucred
  return pid > 0 && user === process.geteuid!() ? pid : undefined
}

/** The kernel's estimate of the round trip of a connection, µs; 0 for what is not TCP. */
export const roundTripUs = (fd: number): number => tcpInfo(fd)?.[TCP_INFO.word.tcpi_rtt] ?? 0

/**
 * How long the peer's host has acknowledged nothing of what is on its way to it, ms; 0 when nothing is, or it is not TCP. A
 * peer that takes nothing for a while does not count: its host says so.
 */
export function unheardMs(fd: number): number {
  const info = tcpInfo(fd)
  if (info === undefined || info[TCP_INFO.word.tcpi_unacked] === 0) return 0
  return info[TCP_INFO.word.tcpi_last_ack_recv]!
}

function tcpInfo(fd: number): Uint32Array | undefined {
  const info = nativeBuffer(TCP_INFO.size)
  const length = nativeBuffer(8)
  length.words[0] = TCP_INFO.size
  const result = libc().getsockopt(fd, LINUX.IPPROTO_TCP, LINUX.TCP_INFO, info.address, length.address)
  return result === -1 ? undefined : info.words
}

export interface ConnectOptions {
  /** Ends the wait when it becomes readable. */
  readonly wakeFd?: number
  readonly timeoutMs: number
}

/**
 * What a unix socket holds that has not been read, bytes; the kernel gives as much of it as `net.core.wmem_max` allows. With the
 * default, 0.2 ms of a fast stream, the two ends stop and go by turns whenever one of them has to wait for a processor.
 */
const UNIX_SEND_BYTES = 2 * 1024 * 1024

/** Block until connected. `fd:N` answers N itself: it is the caller's now. @throws ChannelError if refused, too late or woken; it names the URI. */
export function connectTo(text: string | ChannelUri, options: ConnectOptions): number {
  const uri = typeof text === 'string' ? parseUri(text) : text
  if (uri.kind === 'fd') {
    assertSocket(uri.fd)
    return prepare(uri.fd)
  }
  let error: Error | undefined
  for (const address of resolve(uri, false)) {
    const fd = openSocket(address.family, SOCK_NONBLOCK)
    const failure = tryConnect(fd, address, options)
    if (failure === undefined) {
      if (uri.kind === 'unix') setOption(fd, SOL_SOCKET, LINUX.SO_SNDBUF, UNIX_SEND_BYTES)
      return prepare(fd)
    }
    libc().close(fd)
    // The first address is the preferred one: its failure tells most.
    error ??= connectError(uri, failure, options.timeoutMs)
    if (failure === 'woken') break
  }
  throw error ?? new ChannelError(`${formatUri(uri)}: no address to connect to`)
}

/** Undefined when connected; otherwise `woken`, `timeout` or the errno's name. */
function tryConnect(fd: number, address: SocketAddress, options: ConnectOptions): string | undefined {
  if (libc().connect(fd, address.buffer.address, address.length) === 0) return undefined
  const name = errnoName(errno())
  if (name !== 'EINPROGRESS') return name
  const poll = createPoll(2)
  poll.set(0, fd, POLL_EVENTS.out)
  poll.set(1, options.wakeFd ?? -1, POLL_EVENTS.in)
  if (poll.wait(options.timeoutMs) === 0) return 'timeout'
  if (poll.readable(1)) return 'woken'
  const result = getOption(fd, LINUX.SO_ERROR)
  return result === 0 ? undefined : errnoName(result)
}

function connectError(uri: ChannelUri, failure: string, timeoutMs: number): ChannelError {
  const advice: Readonly<Record<string, string>> = {
    ECONNREFUSED: 'nobody listens there; start the receiver first, or check host and port',
    ENOENT: 'no such socket; start the receiver first, or check the path',
    EAGAIN: 'the receiver takes no more connections now',
    timeout: `no answer within ${timeoutMs} ms; check the host and its firewall`,
    woken: 'given up on request',
  }
  return new ChannelError(
    `cannot connect to ${formatUri(uri)}: ${failure}${advice[failure] ? ` (${advice[failure]})` : ''}`,
  )
}

function openSocket(family: number, flags: number): number {
  return check('socket', libc().socket(family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0))
}

/**
 * A lost packet of a request or an answer is sent again after a round trip and this, not after 200 ms: on a thin stream
 * nothing else tells of the loss, and a guest stands still; and one that is lost again does not wait twice as long.
 * Acknowledgements may not be held back as long. Linux 6.15 and newer have both times; without them it works, and takes
 * longer.
 */
const RETRANSMIT_US_MIN = 16_000
const ACKNOWLEDGE_US_MAX = 8_000

/**
 * A peer whose host is gone, or cut off, says nothing at all, and a stream may stand still for as long as it likes: so the
 * kernel asks after a while whether it is still there. Then the connection is lost, and can be made again.
 */
const ASK_AFTER_S = 5
const ASK_EVERY_S = 3
const ASK_TIMES = 5
/**
 * The same for what nobody acknowledges; for who accepts, and has little to send. Who connects has much, and to the kernel a
 * peer that takes nothing for a while would be a lost one: there `unheardMs` tells.
 */
export const UNHEARD_MS_MAX = (ASK_AFTER_S + ASK_TIMES * ASK_EVERY_S) * 1000

/** Options of every TCP connection; a kernel that lacks some works, and takes longer. */
const TCP_OPTIONS = [
  [LINUX.IPPROTO_TCP, LINUX.TCP_THIN_LINEAR_TIMEOUTS, 1],
  [LINUX.IPPROTO_TCP, LINUX.TCP_RTO_MIN_US, RETRANSMIT_US_MIN],
  [LINUX.IPPROTO_TCP, LINUX.TCP_DELACK_MAX_US, ACKNOWLEDGE_US_MAX],
  [LINUX.IPPROTO_TCP, LINUX.TCP_KEEPIDLE, ASK_AFTER_S],
  [LINUX.IPPROTO_TCP, LINUX.TCP_KEEPINTVL, ASK_EVERY_S],
  [LINUX.IPPROTO_TCP, LINUX.TCP_KEEPCNT, ASK_TIMES],
  [LINUX.SOL_SOCKET, LINUX.SO_KEEPALIVE, 1],
] as const

const ACCEPTED_OPTIONS = [[LINUX.IPPROTO_TCP, LINUX.TCP_USER_TIMEOUT, UNHEARD_MS_MAX]] as const

function tune(fd: number, options: readonly (readonly [number, number, number])[]): void {
  const value = nativeBuffer(8)
  for (const [level, option, setting] of options) {
    value.words[0] = setting
    libc().setsockopt(fd, level, option, value.address, 4)
  }
}

/** Blocking, and small messages leave at once. */
function prepare(fd: number): number {
  setBlocking(fd, true)
  if (boundPort(fd) !== undefined) {
    setOption(fd, LINUX.IPPROTO_TCP, LINUX.TCP_NODELAY)
    tune(fd, TCP_OPTIONS)
  }
  return fd
}

/** Whether calls block that do not say so themselves. */
export function setBlocking(fd: number, blocks: boolean): void {
  const flags = check('fcntl F_GETFL', libc().fcntl(fd, LINUX.F_GETFL, 0))
  const wanted = blocks ? flags & ~LINUX.O_NONBLOCK : flags | LINUX.O_NONBLOCK
  check('fcntl F_SETFL', libc().fcntl(fd, LINUX.F_SETFL, wanted))
}

function prepareAccepted(fd: number): number {
  prepare(fd)
  if (boundPort(fd) !== undefined) tune(fd, ACCEPTED_OPTIONS)
  return fd
}

/** It takes connections over TCP on an address that is not this host's alone. */
export function isReachable(fd: number): boolean {
  return acceptsConnections(fd) && !isBoundToLoopback(fd)
}

function duplicate(fd: number): number {
  return prepare(
    check('fcntl F_DUPFD_CLOEXEC', libc().fcntl(fd, LINUX.F_DUPFD_CLOEXEC, 3), `descriptor ${fd}`),
  )
}

function assertSocket(fd: number): void {
  let isSocket = false
  try {
    isSocket = fstatSync(fd).isSocket()
  } catch (cause) {
    throw new UsageError(`fd:${fd} is not open in this process (${(cause as NodeJS.ErrnoException).code})`)
  }
  if (!isSocket) throw new UsageError(`fd:${fd} is not a socket; pass a connected or listening stream socket`)
}

function setOption(fd: number, level: number, option: number, value = 1): void {
  const word = nativeBuffer(8)
  word.words[0] = value
  check('setsockopt', libc().setsockopt(fd, level, option, word.address, 4), `option ${option}`)
}

export const getOption = (fd: number, option: number): number => readOption(fd, option, 4)[0]!

function readOption(fd: number, option: number, bytes: number): Uint32Array {
  const value = nativeBuffer(bytes)
  const length = nativeBuffer(8)
  length.words[0] = bytes
  check(
    'getsockopt',
    libc().getsockopt(fd, SOL_SOCKET, option, value.address, length.address),
    `option ${option}`,
  )
  return value.words
}

/** Two sockets that are connected to each other. @throws SystemError */
export function socketPair(): readonly [number, number] {
  const fds = nativeBuffer(8)
  check('socketpair', libc().socketpair(LINUX.AF_UNIX, SOCK_STREAM + SOCK_CLOEXEC, 0, fds.address))
  return [fds.words[0]!, fds.words[1]!]
}
