// Where the destination thread waits: for bytes of the stream, for faults of the guest, for a word from another thread.
// One thread does all three, so a fault costs no more wake-ups than it must, and nothing needs a lock. Destination thread.

import { ChannelError } from '../errors.js'
import { AGAIN, tryRead } from '../os/channel.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import type { Wake } from '../os/wake.js'
import type { Pull } from '../wire/reader.js'

export interface Intake {
  /** Bytes of the stream, into the receive buffer; blocks for them, and serves faults meanwhile. */
  readonly pull: Pull
  /** From now on faults are served: `serve` is called when `userfaultfd` (a descriptor) is readable. */
  serveFaults(userfaultfd: number, serve: () => void): void
  /** From now on `serve` is called when `fd` is readable: what the channel for urgent pages waits for. -1: nothing. */
  serveUrgent(fd: number, serve: () => void): void
  /** Serve that channel, and faults, until `done()`, or nothing has come there for `timeoutMs`. */
  waitForUrgent(done: () => boolean, timeoutMs: number): void
  /** From now on the stream may stand still for as long as it likes. */
  trust(): void
  /** The connection is another one from now on. */
  reconnect(fd: number): void
  /** Serve the faults that wait now, if any; for whoever is busy with what has been read. */
  look(): void
}

interface IntakeParts {
  readonly fd: number
  /** Of the receive buffer. */
  readonly bufferAddress: number
  readonly wake: Wake
  /** The wake descriptor was signalled. True: read no more; the stream ends here. */
  onWake(): boolean
  /** How long to wait for the next bytes, ms, until `trust` is called. */
  patienceMs: number
}

const SOCKET = 0
const WAKE = 1
const FAULTS = 2
const URGENT = 3

export function createIntake(parts: IntakeParts): Intake {
  const { bufferAddress, wake, onWake } = parts
  let { fd, patienceMs } = parts
  const poll = createPoll(4)
  poll.set(SOCKET, fd, POLL_EVENTS.in)
  poll.set(WAKE, wake.fd, POLL_EVENTS.in)
  let serve = (): void => {}
  let serveUrgent = (): void => {}
  let urgentFd = -1
  let ended = false
  /** The last read took all there was: the next one would find nothing. */
  let drained = true

  function wait(): void {
    if (poll.wait(patienceMs) === 0)
      throw new ChannelError(`the source has sent nothing for ${patienceMs} ms`)
    serveWaiting()
    if (poll.readable(WAKE)) hearWake()
    drained = !poll.readable(SOCKET)
  }

  function hearWake(): void {
    wake.drain()
    ended ||= onWake()
  }

  function serveWaiting(): void {
    if (poll.readable(FAULTS)) serve()
    if (urgentFd >= 0 && poll.readable(URGENT)) serveUrgent()
  }

  return {
    pull(at, max) {
      for (;;) {
        if (drained) wait()
        if (ended) return 0
        if (drained) continue
        const count = tryRead(fd, bufferAddress + at, max)
        drained = count < max
        if (count !== AGAIN) return count
      }
    },
    serveFaults(userfaultfd, serveWaiting) {
      serve = serveWaiting
      poll.set(FAULTS, userfaultfd, POLL_EVENTS.in)
    },
    trust() {
      patienceMs = -1
    },
    reconnect(another) {
      fd = another
      drained = true
      poll.set(SOCKET, fd, POLL_EVENTS.in)
    },
    serveUrgent(another, serveThere) {
      urgentFd = another
      serveUrgent = serveThere
      poll.set(URGENT, another, POLL_EVENTS.in)
    },
    waitForUrgent(done, timeoutMs) {
      poll.set(SOCKET, -1, 0)
      while (urgentFd >= 0 && !ended && !done() && poll.wait(timeoutMs) > 0) {
        serveWaiting()
        if (poll.readable(WAKE)) hearWake()
      }
      poll.set(SOCKET, fd, POLL_EVENTS.in)
    },
    look() {
      if (urgentFd < 0) serve()
      else if (poll.wait(0) > 0) serveWaiting()
    },
  }
}
