// After the switch the connection may break, or this end's process die; nothing is lost as long as both halves of RAM exist.
// The source reconnects, asks what the destination has placed, and goes on with the rest. Source thread.

import { CancelledError, ChannelError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { connectTo, releaseChannel, sendAll } from '../os/channel.js'
import { monotonicMs, monotonicUs } from '../os/clock.js'
import { createBitmap, merge, subtract } from '../ram/bitmap.js'
import { encodeCommand } from '../wire/messages.js'
import { createOutgoing, type Outgoing, type OutgoingParts, PING, type ReconnectAt } from './outgoing.js'

/** Between two attempts to connect: at first, and at most. */
const PAUSE_MS = { first: 100, most: 2000 } as const
/** How long the destination may take to say what it has, and that it goes on. */
const ANSWER_TIMEOUT_MS = 30_000
/** So much goes into the empty buffer of a socket, whatever it is: sending it does not wait for who reads. */
const ANY_SOCKET_TAKES_BYTES = 4096

/** The connection broke after the switch. What the destination itself reports as its end is not recovered from. */
export function canRecover(o: Outgoing, error: unknown): boolean {
  return (
    error instanceof ChannelError &&
    o.link.shut() === undefined &&
    o.status.is('postcopy-active', 'postcopy-recover')
  )
}

/** What stays when the connection does not. */
export type Reconnecting = Omit<OutgoingParts, 'fd' | 'urgentFd'>

export interface Reconnected {
  readonly fd: number
  readonly urgentFd: number | undefined
  readonly outgoing: Outgoing
}

/** What is known of the connections before this one; of those of a process that died, nothing. */
export interface Before extends Pick<Outgoing, 'populated'> {
  readonly pongs: ReadonlyMap<number, number>
  /** Bytes sent. */
  readonly bytes: number
}

/**
 * From `postcopy-paused`: tries until the destination goes on, or the time is up, or it is cancelled. The status is
 * `postcopy-active` then.
 * @throws ChannelError, CancelledError, ProtocolError
 */
export function recover(parts: Reconnecting, at: ReconnectAt, before: Before): Reconnected {
  const { status, options } = parts
  const endMs = monotonicMs() + options.recoverTimeMs
  const leftMs = (): number => Math.max(0, Math.ceil(endMs - monotonicMs()))
  let last: ChannelError = new ChannelError('the connection was lost')
  for (let pauseMs: number = PAUSE_MS.first; leftMs() > 0; pauseMs = Math.min(2 * pauseMs, PAUSE_MS.most)) {
    const uri = at === 'when-told' ? waitForWord(parts, leftMs()) : at.uri
    if (uri === undefined) break
    try {
      return attempt(parts, uri, before, leftMs())
    } catch (error) {
      if (!(error instanceof ChannelError)) throw error
      last = error
      status.step('channelLost')
    }
    if (at !== 'when-told') waitForWord(parts, Math.min(pauseMs, leftMs()))
  }
  const what = `recovery was given up after ${options.recoverTimeMs} ms`
  throw new ChannelError(`${what}: ${last.message}`, { cause: last })
}

/** Where the main thread says that the destination listens; undefined when the time is up. @throws CancelledError */
function waitForWord({ wake, takeOrders }: Reconnecting, timeoutMs: number): string | undefined {
  for (const endMs = monotonicMs() + timeoutMs; ; ) {
    const leftMs = Math.ceil(endMs - monotonicMs())
    if (leftMs <= 0) return undefined
    wake.wait(leftMs)
    for (const message of takeOrders()) {
      if (message.order === 'cancel') throw new CancelledError()
      if (message.order === 'reconnect') return message.uri
    }
  }
}

/**
 * What is asked goes out whole, right behind the connection: QEMU 7.2 does not survive the end of a connection on which it
 * has not read POSTCOPY_RESUME (SIGSEGV), and this process can be killed at any moment. Answers come in the order of the
 * questions, so there is nothing to wait for in between. The channel for urgent pages comes behind it: QEMU 7.2 reads
 * nothing before it has both, and 10.0 waits for the second when it reads POSTCOPY_RESUME.
 */
function attempt(parts: Reconnecting, uri: string, before: Before, leftMs: number): Reconnected {
  const { status, options, blocks, wake } = parts
  const questions = Buffer.concat([
    ...blocks.map(({ name }) => encodeCommand({ name: 'RECV_BITMAP', block: name })),
    encodeCommand({ name: 'POSTCOPY_RESUME' }),
  ])
  const how = { wakeFd: wake.fd, timeoutMs: Math.min(leftMs, LIMITS.connectMs) }
  status.step('recover')
  let urgentFd: number | undefined
  const fd = connectTo(uri, how)
  try {
    sendAll(fd, questions.subarray(0, ANY_SOCKET_TAKES_BYTES))
    if (options.preempt) urgentFd = connectTo(uri, how)
    status.step('channelUp')
    const rest = questions.subarray(ANY_SOCKET_TAKES_BYTES)
    return { fd, urgentFd, outgoing: resume({ ...parts, fd, urgentFd }, rest, before) }
  } catch (error) {
    releaseChannel(fd)
    releaseChannel(urgentFd ?? -1)
    throw error
  }
}

/** What the destination has not placed is to be sent; what is in the buffers of the lost connection never arrived. */
function resume(parts: OutgoingParts, questions: Uint8Array, before: Before): Outgoing {
  const o = createOutgoing(parts)
  try {
    o.commit()
    o.bytesBefore = before.bytes
    const recovery = { received: new Map<string, Uint8Array>(), acknowledged: false }
    o.recovery = recovery
    o.sender.control(questions)
    o.sender.flush()
    o.link.pumpUntil(
      () => recovery.received.size === o.blocks.length,
      ANSWER_TIMEOUT_MS,
      'telling what it has received',
    )
    o.link.pumpUntil(() => recovery.acknowledged, ANSWER_TIMEOUT_MS, 'going on')
    // Whoever is asked for what it has runs the guest.
    for (const [value, atUs] of before.pongs) o.pongs.set(value, atUs)
    if (!o.pongs.has(PING.loaded)) o.pongs.set(PING.loaded, monotonicUs())
    for (const { index, name } of o.blocks) takeReceived(o, before, index, recovery.received.get(name)!)
    o.recovery = undefined
    o.status.step('resumeAck')
    return o
  } catch (error) {
    o.close()
    throw error
  }
}

function takeReceived(o: Outgoing, before: Before, index: number, bytes: Uint8Array): void {
  const { pages } = o.blocks[index]!
  const [dirty, background, populated] = [o.dirty[index]!, o.background[index]!, o.populated[index]!]
  const received = createBitmap(pages, bytes.slice().buffer)
  merge(populated, before.populated[index]!)
  dirty.setRange(0, pages)
  // Unless it is the same bitmap: zero pages go only when they are asked for.
  if (background !== dirty) {
    merge(background, populated)
    subtract(background, received)
  }
  subtract(dirty, received)
}
