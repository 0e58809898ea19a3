// poll(2) over a fixed set of descriptors. Any engine thread; one poll set belongs to one thread.

import { check, errno, errnoOf, libc } from './libc.js'
import { LINUX, POLLFD } from './linux-abi.js'
import { nativeBuffer } from './memory.js'

const EINTR = errnoOf('EINTR')

/** Bits of struct pollfd's events and revents. */
export const POLL_EVENTS = {
  in: LINUX.POLLIN,
  out: LINUX.POLLOUT,
  error: LINUX.POLLERR,
  hangUp: LINUX.POLLHUP,
  invalid: LINUX.POLLNVAL,
} as const

/** A struct pollfd, as words and as halves of them. */
const WORDS = POLLFD.size / 4
const HALVES = POLLFD.size / 2
const EVENTS = POLLFD.at.events / 2
const RETURNED = POLLFD.at.revents / 2

export interface Poll {
  /** Watch `fd` in slot `index` for `events` (bits of POLL_EVENTS); -1 leaves the slot out. */
  set(index: number, fd: number, events: number): void
  /** Block until a slot is ready; number of ready slots, 0 after `timeoutMs` (-1: no limit). */
  wait(timeoutMs: number): number
  /** A read will not block: data, or the end or an error that the read will report. */
  readable(index: number): boolean
  writable(index: number): boolean
  /** The peer is gone, or the descriptor is in error or not open. */
  hungUp(index: number): boolean
}

export function createPoll(slots: number): Poll {
  const set = nativeBuffer(slots * POLLFD.size)
  const fds = new Int32Array(set.bytes.buffer)
  const halves = new Uint16Array(set.bytes.buffer)
  fds.fill(-1)
  const { poll } = libc()
  const returned = (index: number) => halves[index * HALVES + RETURNED]!
  const { in: IN, out: OUT, error, hangUp, invalid } = POLL_EVENTS
  return {
    set(index, fd, events) {
      fds[index * WORDS] = fd
      halves[index * HALVES + EVENTS] = events
      halves[index * HALVES + RETURNED] = 0
    },
    wait(timeoutMs) {
      for (;;) {
        const ready = poll(set.address, slots, timeoutMs)
        if (ready !== -1) return ready
        if (errno() !== EINTR) return check('poll', ready)
      }
    },
    readable: (index) => (returned(index) & (IN | hangUp | error | invalid)) !== 0,
    writable: (index) => (returned(index) & OUT) !== 0,
    hungUp: (index) => (returned(index) & (hangUp | error | invalid)) !== 0,
  }
}
