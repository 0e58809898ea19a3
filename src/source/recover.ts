// After the switch the connection may break; nothing is lost as long as both halves of RAM exist. The source reconnects,
// asks what the destination has placed, and goes on with the rest. Source thread.

import { CancelledError, ChannelError } from '../errors.js'
import { connectTo } from '../os/channel.js'
import { monotonicMs, monotonicUs } from '../os/clock.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import type { Wake } from '../os/wake.js'
import { createBitmap } from '../ram/bitmap.js'
import { encodeCommand } from '../wire/messages.js'
import { createOutgoing, type Order, type Outgoing, type OutgoingParts, PING, sentBytes } from './outgoing.js'

/** Between two attempts to connect: at first, and at most. */
const PAUSE_MS = { first: 100, most: 2000 } as const
const CONNECT_TIMEOUT_MS = 10_000
/** How long the destination may take to say what it has, and that it goes on. */
const ANSWER_TIMEOUT_MS = 30_000

/** The connection broke, and recovery was asked for. What the destination itself reports as its end is not recovered from. */
export function canRecover(o: Outgoing, error: unknown): boolean {
  return (
    error instanceof ChannelError &&
    o.options.recover.uri !== undefined &&
    o.urgent === o.sender &&
    o.link.shut === undefined &&
    o.status.is('postcopy-active', 'postcopy-recover')
  )
}

export interface Reconnected {
  readonly fd: number
  readonly outgoing: Outgoing
}

/**
 * Tries until the destination goes on, or the time is up, or it is cancelled. The status is `postcopy-active` then.
 * @param release closes the connection that is lost
 * @throws ChannelError, CancelledError, ProtocolError
 */
export function recover(lost: Outgoing, parts: OutgoingParts, release: (fd: number) => void): Reconnected {
  const { status, options } = lost
  const endMs = monotonicMs() + options.recover.timeLimitMs
  let last: ChannelError = new ChannelError('the connection was lost')
  status.step('channelLost')
  for (let pauseMs: number = PAUSE_MS.first; ; pauseMs = Math.min(2 * pauseMs, PAUSE_MS.most)) {
    const leftMs = endMs - monotonicMs()
    if (leftMs <= 0) {
      throw new ChannelError(
        `recovery was given up after ${options.recover.timeLimitMs} ms: ${last.message}`,
        { cause: last },
      )
    }
    let fd = -1
    let outgoing: Outgoing | undefined
    status.step('recover')
    try {
      fd = connectTo(options.recover.uri!, {
        wakeFd: parts.wake.fd,
        timeoutMs: Math.min(leftMs, CONNECT_TIMEOUT_MS),
      })
      status.step('channelUp')
      outgoing = resume(lost, { ...parts, fd })
      return { fd, outgoing }
    } catch (error) {
      outgoing?.close()
      if (fd >= 0) release(fd)
      if (!(error instanceof ChannelError)) throw error
      last = error
      status.step('channelLost')
    }
    pause(parts, Math.min(pauseMs, Math.max(0, leftMs)))
  }
}

/** Sleeps, unless it is cancelled meanwhile. */
function pause({ wake, takeOrders }: { wake: Wake; takeOrders(): Order[] }, ms: number): void {
  const poll = createPoll(1)
  poll.set(0, wake.fd, POLL_EVENTS.in)
  poll.wait(Math.ceil(ms))
  wake.drain()
  if (takeOrders().some(({ order }) => order === 'cancel')) throw new CancelledError()
}

/** What the destination has not placed is to be sent; what is in the buffers of the lost connection never arrived. */
function resume(lost: Outgoing, parts: OutgoingParts): Outgoing {
  const o = createOutgoing(parts)
  try {
    o.committed = true
    o.bytesBefore = sentBytes(lost)
    const recovery = { received: new Map<string, Uint8Array>(), acknowledged: false }
    o.recovery = recovery
    for (const { name } of o.blocks) o.sender.control(encodeCommand({ name: 'RECV_BITMAP', block: name }))
    o.sender.flush()
    o.link.pumpUntil(
      () => recovery.received.size === o.blocks.length,
      ANSWER_TIMEOUT_MS,
      'telling what it has received',
    )
    // Whoever is asked for what it has runs the guest.
    for (const [value, atUs] of lost.pongs) o.pongs.set(value, atUs)
    if (!o.pongs.has(PING.loaded)) o.pongs.set(PING.loaded, monotonicUs())
    for (const { index, name } of o.blocks) takeReceived(o, lost, index, recovery.received.get(name)!)
    o.sender.control(encodeCommand({ name: 'POSTCOPY_RESUME' }))
    o.sender.flush()
    o.link.pumpUntil(() => recovery.acknowledged, ANSWER_TIMEOUT_MS, 'going on')
    o.recovery = undefined
    o.status.step('resumeAck')
    return o
  } catch (error) {
    o.close()
    throw error
  }
}

function takeReceived(o: Outgoing, lost: Outgoing, index: number, bytes: Uint8Array): void {
  const { pages } = o.blocks[index]!
  const dirty = o.dirty[index]!
  const populated = o.populated[index]!
  populated.words.set(lost.populated[index]!.words)
  const received = createBitmap(pages, bytes.slice().buffer)
  for (let w = 0; w < dirty.words.length; w++) dirty.words[w] = ~received.words[w]!
  clearBeyond(dirty.words, pages)
  const background = o.background[index]!
  if (background === dirty) return
  // Zero pages go only when they are asked for.
  for (let w = 0; w < dirty.words.length; w++) background.words[w] = dirty.words[w]! & populated.words[w]!
}

/** The last word has bits of no page. */
function clearBeyond(words: Uint32Array, bits: number): void {
  if (bits % 32 !== 0) words[words.length - 1]! &= 2 ** (bits % 32) - 1
}
