// The way back to the source. Destination thread.

import { ChannelError } from '../errors.js'
import { sendAll, sendWhole } from '../os/channel.js'
import { nativeBuffer } from '../os/memory.js'
import type { RamBlock } from '../ram/block.js'
import { trace, tracing } from '../trace.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'

export interface ReturnPath {
  /** Another connection: on it, the block of the first request is named again. */
  reconnect(fd: number): void
  /** Blocks until the message is with the kernel. @throws ChannelError when the connection is lost. */
  send(message: ReturnMessage): void
  /**
   * Asks for the host page at `start`. When the connection is lost, the request is not: `requested` has it, and whoever
   * reads the stream sees the same loss, and decides.
   */
  requestPage(block: RamBlock, start: number): void
}

export function createReturnPath(firstFd: number): ReturnPath {
  let fd = firstFd
  // In memory that is made once, and sent without a copy: a guest thread waits for it.
  const plain = encodeReturnMessage({ name: 'REQ_PAGES', start: 0, length: 0 })
  const request = nativeBuffer(plain.length)
  request.bytes.set(plain)
  const body = new DataView(request.bytes.buffer, 4)
  let lastRequested: RamBlock | undefined

  function send(message: ReturnMessage): void {
    sendAll(fd, encodeReturnMessage(message))
    trace('migrate_send_rp_message', message.name)
  }

  /** The source remembers the block: it is named only when it changes. */
  function sendRequest(block: RamBlock, start: number): void {
    if (block !== lastRequested) {
      send({ name: 'REQ_PAGES_ID', start, length: block.pageSize, block: block.name })
      lastRequested = block
      return
    }
    body.setUint32(0, start / 2 ** 32)
    body.setUint32(4, start) // modulo 2^32: the low half
    body.setUint32(8, block.pageSize)
    sendWhole(fd, request.address, plain.length)
    if (tracing()) trace('migrate_send_rp_message', 'REQ_PAGES')
  }

  return {
    reconnect(another) {
      fd = another
      lastRequested = undefined
    },
    send,
    requestPage(block, start) {
      try {
        sendRequest(block, start)
      } catch (error) {
        if (!(error instanceof ChannelError)) throw error
      }
    },
  }
}
