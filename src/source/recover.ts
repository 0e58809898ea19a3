// After the switch the connection may break; nothing is lost as long as both halves of RAM exist. The source reconnects,
// asks what the destination has placed, and goes on with the rest. Source thread.

import { CancelledError, ChannelError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { connectTo, releaseChannel } from '../os/channel.js'
import { monotonicMs, monotonicUs } from '../os/clock.js'
import { createBitmap, merge, subtract } from '../ram/bitmap.js'
import { encodeCommand } from '../wire/messages.js'
import { createOutgoing, type Outgoing, type OutgoingParts, PING, sentBytes } from './outgoing.js'

/** Between two attempts to connect: at first, and at most. */
const PAUSE_MS = { first: 100, most: 2000 } as const
/** How long the destination may take to say what it has, and that it goes on. */
const ANSWER_TIMEOUT_MS = 30_000

/** The connection broke after the switch. What the destination itself reports as its end is not recovered from. */
export function canRecover(o: Outgoing, error: unknown): boolean {
  return (
    error instanceof ChannelError &&
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
 * @throws ChannelError, CancelledError, ProtocolError
 */
export function recover(lost: Outgoing, parts: OutgoingParts, uri: string): Reconnected {
  const { status, options } = lost
  const endMs = monotonicMs() + options.recoverTimeMs
  let last: ChannelError = new ChannelError('the connection was lost')
  status.step('channelLost')
  for (let pauseMs: number = PAUSE_MS.first; ; pauseMs = Math.min(2 * pauseMs, PAUSE_MS.most)) {
    const leftMs = endMs - monotonicMs()
    if (leftMs <= 0) {
      const what = `recovery was given up after ${options.recoverTimeMs} ms`
      throw new ChannelError(`${what}: ${last.message}`, { cause: last })
    }
    try {
      return attempt(lost, parts, uri, leftMs)
    } catch (error) {
      if (!(error instanceof ChannelError)) throw error
      last = error
      status.step('channelLost')
    }
    parts.wake.wait(Math.ceil(Math.min(pauseMs, leftMs)))
    if (parts.takeOrders().some(({ order }) => order === 'cancel')) throw new CancelledError()
  }
}

function attempt(lost: Outgoing, parts: OutgoingParts, uri: string, leftMs: number): Reconnected {
  lost.status.step('recover')
  const timeoutMs = Math.min(leftMs, LIMITS.connectMs)
  const fd = connectTo(uri, { wakeFd: parts.wake.fd, timeoutMs })
  try {
    lost.status.step('channelUp')
    return { fd, outgoing: resume(lost, { ...parts, fd }) }
  } catch (error) {
    releaseChannel(fd)
    throw error
  }
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
  const [dirty, background, populated] = [o.dirty[index]!, o.background[index]!, o.populated[index]!]
  const received = createBitmap(pages, bytes.slice().buffer)
  merge(populated, lost.populated[index]!)
  dirty.setRange(0, pages)
  // Unless it is the same bitmap: zero pages go only when they are asked for.
  if (background !== dirty) {
    merge(background, populated)
    subtract(background, received)
  }
  subtract(dirty, received)
}
