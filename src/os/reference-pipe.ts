// Bytes into a unix socket by reference: the kernel passes on the pages of memory where they lie, and whoever reads the
// socket copies them from there. That spares a copy of all that is sent, and the memory for it. Engine threads.
//
// The way leads through a pipe: vmsplice(2) puts references to memory into it, splice(2) moves them on. Whatever is sent
// so must stay as it is until the peer has read it, which nothing here tells; see source/staging.ts.

import { getOption, setBlocking } from './channel.js'
import { AGAIN, againOrThrow } from './channel-io.js'
import { check, libc } from './libc.js'
import { LINUX } from './linux-abi.js'
import { nativeBuffer } from './memory.js'

/** As much as anybody may have without a right: 256 references. A pipe that stays smaller only takes more calls. */
const PIPE_BYTES = 1024 * 1024
const { SPLICE_F_NONBLOCK, O_CLOEXEC } = LINUX
/** The most that a socket may hold for this: what is sent by reference is read before three times as much was sent. */
export const REFERENCE_SEND_BYTES_MAX = 8 * 1024 * 1024

export interface ReferencePipe {
  /** As `trySendVector`; what it has taken may be in the pipe still. */
  send(iovecAddress: number, count: number): number
  /** All that was taken is in the socket; false: there is no room for all of it. */
  drain(): boolean
  close(): void
}

/**
 * Undefined where `fd` is no unix socket, or one that holds too much.
 * @param fd calls that do not say that they may block do not, from now on
 */
export function createReferencePipe(fd: number): ReferencePipe | undefined {
  if (
    getOption(fd, LINUX.SO_DOMAIN) !== LINUX.AF_UNIX ||
    getOption(fd, LINUX.SO_SNDBUF) > REFERENCE_SEND_BYTES_MAX
  )
    return undefined
  const ends = nativeBuffer(8)
  check('pipe2', libc().pipe2(ends.address, O_CLOEXEC))
  const [from, to] = [ends.words[0]!, ends.words[1]!]
  libc().fcntl(to, LINUX.F_SETPIPE_SZ, PIPE_BYTES)
  setBlocking(fd, false) // splice has no flag for it
  const { vmsplice, splice } = libc()
  let inside = 0

  function drain(): boolean {
    while (inside > 0) {
      const moved = splice(from, 0, fd, 0, inside, SPLICE_F_NONBLOCK)
      if (moved === -1) {
        againOrThrow('splice', fd)
        return false
      }
      inside -= moved
    }
    return true
  }

  return {
    send(iovecAddress, count) {
      if (!drain()) return AGAIN
      const taken = vmsplice(to, iovecAddress, count, SPLICE_F_NONBLOCK)
      if (taken === -1) return againOrThrow('vmsplice', fd)
      inside = taken
      drain()
      return taken
    },
    drain,
    close() {
      libc().close(from)
      libc().close(to)
    },
  }
}
