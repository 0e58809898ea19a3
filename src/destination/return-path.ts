// The way back to the source. Two threads write to it, so each message is sent whole under a lock.

import { sendAll } from '../os/channel.js'
import { trace } from '../trace.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import { CELL } from './shared.js'

export interface ReturnPath {
  /** Blocks until the message is with the kernel. @throws ChannelError when the connection is lost. */
  send(message: ReturnMessage): void
}

export function createReturnPath(fd: number, cells: Int32Array): ReturnPath {
  return {
    send(message) {
      const bytes = encodeReturnMessage(message)
      lock(cells)
      try {
        sendAll(fd, bytes)
      } finally {
        unlock(cells)
      }
      trace('migrate_send_rp_message', message.name)
    },
  }
}

function lock(cells: Int32Array): void {
  if (Atomics.compareExchange(cells, CELL.returnPathLock, 0, 1) === 0) return
  while (Atomics.exchange(cells, CELL.returnPathLock, 2) !== 0) Atomics.wait(cells, CELL.returnPathLock, 2)
}

function unlock(cells: Int32Array): void {
  if (Atomics.exchange(cells, CELL.returnPathLock, 0) === 2) Atomics.notify(cells, CELL.returnPathLock, 1)
}
