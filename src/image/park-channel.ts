// The connection of a parking: blocking reads that can be woken, answers to the source, and an eye on further connections.
// Park thread.
//
// A source with multifd sends pages over more connections, which cannot be taken; with postcopy-preempt it opens one more,
// on which nothing comes as long as nobody asks for a page. Which it is can be seen by the first bytes.

import { CancelledError, ProtocolError } from '../errors.js'
import { AGAIN, acceptOn, closeFd, readSome, sendAll, tryRead } from '../os/channel.js'
import { nativeBuffer } from '../os/memory.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'

export interface ParkChannel {
  /** Blocks; 0 at the end of the stream. @throws CancelledError when woken, ProtocolError for multifd, ChannelError */
  read(address: number, max: number): number
  /** Waits for `ms`; true when nothing came, not even the end. @throws CancelledError */
  quiet(ms: number): boolean
  /** @throws ProtocolError when there is a multifd channel. */
  refuseOthers(): void
  /** @throws ChannelError */
  send(message: ReturnMessage): void
  /** Reads on until the source has closed the connection, at most for `ms`. What comes is not looked at. */
  drain(ms: number): void
  /** The other connections; the main one is the caller's. */
  close(): void
}

export interface ParkChannelParts {
  readonly fd: number
  readonly wakeFd: number
  /** Where others may connect; -1: nowhere. */
  readonly listenFd: number
}

const MULTIFD_MAGIC = 0x11223344
const SLOT = { main: 0, wake: 1, listener: 2, other: 3 } as const

export function createParkChannel({ fd, wakeFd, listenFd }: ParkChannelParts): ParkChannel {
  const poll = createPoll(4)
  poll.set(SLOT.main, fd, POLL_EVENTS.in)
  poll.set(SLOT.wake, wakeFd, POLL_EVENTS.in)
  poll.set(SLOT.listener, listenFd, POLL_EVENTS.in)
  const scratch = nativeBuffer(4096)
  const view = new DataView(scratch.bytes.buffer)
  let other = -1

  /** True when there is something to read on the main connection. */
  function wait(timeoutMs: number): boolean {
    for (;;) {
      const ready = poll.wait(timeoutMs)
      if (poll.readable(SLOT.wake)) throw new CancelledError('parking was cancelled')
      if (poll.readable(SLOT.other)) lookAtOther()
      else if (poll.readable(SLOT.listener)) acceptOther()
      if (poll.readable(SLOT.main)) return true
      if (ready === 0) return false
    }
  }

  function acceptOther(): void {
    const accepted = acceptOn(listenFd, wakeFd)
    if (accepted === 'woken') return
    other = accepted
    // One is enough to tell what they are.
    poll.set(SLOT.listener, -1, 0)
    poll.set(SLOT.other, other, POLL_EVENTS.in)
  }

  function lookAtOther(): void {
    const got = tryRead(other, scratch.address, 8)
    if (got === AGAIN) return
    if (got >= 4 && view.getUint32(0) === MULTIFD_MAGIC) {
      throw new ProtocolError(
        'multifd channels cannot be taken: switch the capability "multifd" off at the source',
        { offset: 0, record: 'another connection' },
      )
    }
    // The end, or the empty list of pages with which a preempt channel ends.
    poll.set(SLOT.other, -1, 0)
  }

  return {
    read(address, max) {
      // Whoever sends fast is not polled; when nothing is there, there is time to look at the others.
      for (;;) {
        const got = tryRead(fd, address, max)
        if (got !== AGAIN) return got
        wait(-1)
      }
    },
    quiet: (ms) => !wait(ms),
    refuseOthers() {
      // Once to accept, once to look.
      for (let i = 0; i < 2; i++) wait(0)
    },
    send: (message) => sendAll(fd, encodeReturnMessage(message)),
    drain(ms) {
      const endMs = performance.now() + ms
      try {
        while (wait(Math.max(0, endMs - performance.now())) && performance.now() < endMs) {
          if (readSome(fd, scratch.address, scratch.bytes.length) === 0) return
        }
      } catch {
        // The image is whole, and the source has its answer.
      }
    },
    close() {
      if (other >= 0) closeFd(other)
      other = -1
    },
  }
}
