// A wake descriptor (eventfd): ends another thread's poll. Threads share it by its number.

import { check, libc } from './libc.js'
import { LINUX } from './linux-abi.js'
import { nativeBuffer, setU64 } from './memory.js'
import { createPoll, POLL_EVENTS, type Poll } from './poll.js'

export interface Wake {
  /** Readable from `signal` until `drain`. */
  readonly fd: number
  signal(): void
  /** Block until it is signalled, and make it unreadable again; false after `timeoutMs` (-1, the default: no limit). */
  wait(timeoutMs?: number): boolean
  /** Make it unreadable again; true if it had been signalled. Never blocks. */
  drain(): boolean
  /** Only where it was created, after every thread that polls it has ended. Idempotent. */
  close(): void
}

export function createWake(): Wake {
  return wakeFromFd(check('eventfd', libc().eventfd(0, LINUX.EFD_CLOEXEC | LINUX.EFD_NONBLOCK)))
}

/** The same wake descriptor, on another thread of this process. */
export function wakeFromFd(fd: number): Wake {
  const one = nativeBuffer(8)
  setU64(one.words, 0, 1)
  const count = nativeBuffer(8)
  let open = true
  let poll: Poll | undefined
  const wake: Wake = {
    fd,
    signal() {
      // It can only fail when the counter is full, and then it is readable anyway.
      if (open) libc().write(fd, one.address, 8) // a closed number may be another file's by now
    },
    wait(timeoutMs = -1) {
      poll ??= pollFor(fd)
      poll.wait(timeoutMs)
      return wake.drain()
    },
    drain: () => libc().read(fd, count.address, 8) === 8,
    close() {
      if (open) libc().close(fd)
      open = false
    },
  }
  return wake
}

function pollFor(fd: number): Poll {
  const poll = createPoll(1)
  poll.set(0, fd, POLL_EVENTS.in)
  return poll
}
