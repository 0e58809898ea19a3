// The source's side of the connection: waits for the socket, the return path and the wake descriptor in one poll, takes
// what comes in, and keeps what the rest of the source asks about it. Source thread.

import { ChannelError, ProtocolError } from '../errors.js'
import { AGAIN, tryRead, UNHEARD_MS_MAX, unheardMs, unsentBytes } from '../os/channel.js'
import { monotonicMs } from '../os/clock.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import type { Wake } from '../os/wake.js'
import { trace } from '../trace.js'
import { createReturnPathParser, type ReturnMessage, type ReturnPathParser } from '../wire/messages.js'

const READ_BYTES = 4096
/** How often, while the destination is silent, it is looked whether bytes go out to it. */
const LOOKS_IN_SILENCE = 8

export interface LinkHandlers {
  /** A page request; `block` is resolved (the last named one for REQ_PAGES). */
  onRequest(block: string, start: number, length: number): void
  /** True while requests can be taken in. */
  canTakeRequests(): boolean
  onPong(value: number): void
  /** Length of the received bitmap of a block, when one is awaited: in recovery. */
  expectedBitmapBytes(block: string): number | undefined
  onBitmap(block: string, bitmap: Uint8Array): void
  onResumeAck(value: number): void
  /** The wake descriptor was signalled: look for orders from the main thread. May throw to end what is under way. */
  onWake(): void
}

export interface Link {
  /** Wait up to `timeoutMs` (-1: for ever) for anything to happen, and handle it. */
  pump(timeoutMs: number): void
  /**
   * The same for somebody who cannot go on without the destination: until it says something, or takes bytes, or there is
   * room to send on `writableFd`, this connection or one that belongs to it. False when a while has passed in vain.
   * @throws ChannelError when that went on for `silenceMs`; it says what was awaited.
   */
  pumpPeer(waitingFor: string, writableFd?: number): boolean
  /** Take in what the destination has said, and nothing else: costs a fraction of `pump(0)`. */
  look(): void
  /** Hear the destination on a second connection as well: what it asks for. */
  listenAlso(fd: number): void
  /** Pump until `done()`. @throws ChannelError when that takes longer than `timeoutMs`. */
  pumpUntil(done: () => boolean, timeoutMs: number, waitingFor: string): void
  /** When `pump` last woke up, ms of `monotonicMs`: near enough to now, and read once for all that is done then. */
  wokenMs(): number
  /** The value of SHUT, once it has come. */
  shut(): number | undefined
  close(): void
}

/** One connection on which the destination speaks. */
interface Ear {
  readonly fd: number
  readonly parser: ReturnPathParser
  ended: boolean
}

/** @param silenceMs how long the destination may do nothing while it is waited for */
export function createLink(fd: number, wake: Wake, silenceMs: number, handlers: LinkHandlers): Link {
  const buffer = mapAnonymous(READ_BYTES)
  const bytes = viewOf(buffer.address, READ_BYTES)
  const poll = createPoll(4)
  poll.set(1, wake.fd, POLL_EVENTS.in)
  let shut: number | undefined
  let wokenMs = monotonicMs()
  // The last sign of life that was asked for: since then the destination is waited for.
  let signMs = wokenMs
  let unsent = 0

  const main = listenTo(fd)
  let urgent: Ear | undefined

  function listenTo(fd: number): Ear {
    let lastBlock: string | undefined
    const parser = createReturnPathParser(
      (message) => {
        if (message.name === 'REQ_PAGES_ID') lastBlock = message.block
        receive(message)
      },
      {
        expectedBitmapBytes: handlers.expectedBitmapBytes,
        onRequest: (start, length) => requestPages(lastBlock, start, length),
        onPong: pong,
      },
    )
    return { fd, parser, ended: false }
  }

  function receive(message: ReturnMessage): void {
    switch (message.name) {
      case 'SHUT':
        trace('source_return_path_shut', message.value)
        shut = message.value
        if (shut !== 0)
          throw new ChannelError('the destination reports that it failed; its own output says why')
        break
      case 'REQ_PAGES_ID':
        handlers.onRequest(message.block, message.start, message.length)
        break
      case 'RECV_BITMAP':
        handlers.onBitmap(message.block, message.bitmap)
        break
      case 'RESUME_ACK':
        handlers.onResumeAck(message.value)
        break
      case 'SWITCHOVER_ACK':
        break // allowed, and nothing here waits for it
      default:
        throw new ProtocolError(`unexpected return-path message ${message.name}`, {
          offset: 0,
          record: message.name,
        })
    }
  }

  function pong(value: number): void {
    trace('source_return_path_pong', value)
    handlers.onPong(value)
  }

  function requestPages(block: string | undefined, start: number, length: number): void {
    if (block === undefined) {
      throw new ProtocolError('a page request names no block and none came before it', {
        offset: 0,
        record: 'REQ_PAGES',
      })
    }
    handlers.onRequest(block, start, length)
  }

  function readReturnPath(ear: Ear): void {
    while (handlers.canTakeRequests()) {
      const count = tryRead(ear.fd, buffer.address, READ_BYTES)
      if (count === AGAIN) return
      wokenMs = monotonicMs()
      signMs = wokenMs
      if (count === 0) {
        ear.ended = true
        return
      }
      ear.parser.feed(bytes, count)
      if (count < READ_BYTES) return // that was all; poll tells of more
    }
  }

  /** Its end is no news: the destination closes it when it is done, and what cannot be sent there says so itself. */
  function readUrgent(ear: Ear): void {
    try {
      readReturnPath(ear)
    } catch (error) {
      if (!(error instanceof ChannelError)) throw error
      ear.ended = true
    }
  }

  function wait(timeoutMs: number, writableFd: number): void {
    // Whoever waits here still has something to send, or to hear.
    if (shut !== undefined) {
      throw new ProtocolError('the destination says that it has everything, but it has not', {
        offset: 0,
        record: 'SHUT',
        got: `${shut}`,
      })
    }
    const canTake = handlers.canTakeRequests()
    const listening = !main.ended && canTake
    poll.set(0, fd, listening ? POLL_EVENTS.in : 0)
    poll.set(2, writableFd, POLL_EVENTS.out)
    if (urgent !== undefined) poll.set(3, urgent.ended ? -1 : urgent.fd, canTake ? POLL_EVENTS.in : 0)
    poll.wait(timeoutMs)
    wokenMs = monotonicMs()
    if (poll.writable(2)) signMs = wokenMs
    if (poll.readable(1)) {
      wake.drain()
      handlers.onWake()
    }
    if (listening && (poll.readable(0) || poll.hungUp(0))) readReturnPath(main)
    if (urgent !== undefined && canTake && poll.readable(3)) readUrgent(urgent)
    // After SHUT the peer may close as it likes; before it, the end of the return path is the end of the peer.
    if (main.ended && shut === undefined) {
      throw new ChannelError('the destination closed the connection; it failed, or its process was ended')
    }
  }

  function pump(timeoutMs: number): void {
    wait(timeoutMs, -1)
    signMs = wokenMs
  }

  /** Bytes that are with the kernel may be on their way over a slow link for long. */
  function takesBytes(): boolean {
    const before = unsent
    unsent = unsentBytes(fd)
    return unsent < before
  }

  function pumpPeer(waitingFor: string, writableFd = -1): boolean {
    wait(silenceMs / LOOKS_IN_SILENCE, writableFd)
    if (signMs === wokenMs) return true
    if (takesBytes()) signMs = wokenMs
    if (unheardMs(fd) > UNHEARD_MS_MAX)
      throw new ChannelError('connection lost: the host of the destination does not answer')
    if (wokenMs - signMs < silenceMs) return false
    throw new ChannelError(
      `the destination has said nothing and taken nothing for ${Math.round(silenceMs / 1000)} s: it was awaited ${waitingFor}`,
    )
  }

  return {
    pump,
    pumpPeer,
    look() {
      if (!main.ended) readReturnPath(main)
      if (urgent !== undefined && !urgent.ended) readUrgent(urgent)
    },
    listenAlso(fd) {
      urgent = listenTo(fd)
    },
    pumpUntil(done, timeoutMs, waitingFor) {
      const deadline = performance.now() + timeoutMs
      while (!done()) {
        const left = deadline - performance.now()
        if (left <= 0)
          throw new ChannelError(`the destination did not answer within ${timeoutMs} ms: ${waitingFor}`)
        pump(Math.ceil(Math.min(left, 1000)))
      }
    },
    wokenMs: () => wokenMs,
    shut: () => shut,
    close() {
      buffer.unmap()
    },
  }
}
