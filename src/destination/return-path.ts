// The way back to the source. Two threads write to it, so each message is sent whole under a lock.

import { sendAll } from '../os/channel.js'
import { trace } from '../trace.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import { CELL } from './shared.js'

export interface ReturnPath {
  /** Blocks until the message is with the kernel. @throws ChannelError when the connection is lost. */
  send(message: ReturnMessage): void
  /** REQ_PAGES, in a buffer that is made once: a guest thread waits for it. @throws ChannelError */
  requestPages(start: number, length: number): void
}

export function createReturnPath(fd: number, cells: Int32Array): ReturnPath {
  const request = encodeReturnMessage({ name: 'REQ_PAGES', start: 0, length: 0 })
  const body = new DataView(request.buffer, request.byteOffset + 4, request.length - 4)

  function sendLocked(bytes: Uint8Array, name: ReturnMessage['name']): void {
    lock(cells)
    try {
      sendAll(fd, bytes)
    } finally {
      unlock(cells)
    }
    trace('migrate_send_rp_message', name)
  }

  return {
    send: (message) => sendLocked(encodeReturnMessage(message), message.name),
    requestPages(start, length) {
      body.setUint32(0, start / 2 ** 32)
      body.setUint32(4, start) // modulo 2^32: the low half
      body.setUint32(8, length)
      sendLocked(request, 'REQ_PAGES')
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
