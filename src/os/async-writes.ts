// Writes that are under way while their thread goes on: Linux's asynchronous I/O (io_submit(2)), for descriptors that were opened with
// O_DIRECT; others are written to at once. Any thread; one object belongs to one thread.

import { check, errno, errnoOf, syscall } from './libc.js'
import { IO_EVENT, IOCB, LINUX } from './linux-abi.js'
import { getS64, getU64, nativeBuffer, setU64 } from './memory.js'

const EINTR = errnoOf('EINTR')
const EVENT_WORDS = IO_EVENT.size / 4

export interface AsyncWrites {
  /** Begins one; the memory stays as it is until `tag` has ended. At most `most` at a time. @throws SystemError */
  begin(fd: number, address: number, bytes: number, offset: number, tag: number): void
  /** Waits until one has ended, at least. `ended`: its tag, and the bytes that were written, or an errno below zero. */
  wait(ended: (tag: number, result: number) => void): void
  /** Waits for those that are under way. Idempotent. */
  close(): void
}

/** @throws SystemError where the system has no more of them (/proc/sys/fs/aio-max-nr) */
export function createAsyncWrites(most: number): AsyncWrites {
  const context = nativeBuffer(8)
  check('io_setup', syscall('io_setup', most, context.address), `${most} writes`)
  const id = getU64(context.words, 0)
  const block = nativeBuffer(IOCB.size)
  const halves = new Uint16Array(block.bytes.buffer)
  const list = nativeBuffer(8)
  setU64(list.words, 0, block.address)
  const events = nativeBuffer(most * IO_EVENT.size)
  let open = true
  return {
    begin(fd, address, bytes, offset, tag) {
      const { words } = block
      setU64(words, IOCB.word.aio_data, tag)
      halves[IOCB.at.aio_lio_opcode / 2] = LINUX.IOCB_CMD_PWRITE
      words[IOCB.word.aio_fildes] = fd
      setU64(words, IOCB.word.aio_buf, address)
      setU64(words, IOCB.word.aio_nbytes, bytes)
      setU64(words, IOCB.word.aio_offset, offset)
      check('io_submit', syscall('io_submit', id, 1, list.address), `${bytes} bytes at ${offset}`)
    },
    wait(ended) {
      let count = -1
      while (count === -1) {
        count = syscall('io_getevents', id, 1, most, events.address)
        if (count === -1 && errno() !== EINTR) check('io_getevents', count)
      }
      for (let at = 0; at < count * EVENT_WORDS; at += EVENT_WORDS) {
        const tag = getU64(events.words, at + IO_EVENT.word.data)
        ended(tag, getS64(events.words, at + IO_EVENT.word.res))
      }
    },
    close() {
      if (!open) return
      open = false
      check('io_destroy', syscall('io_destroy', id))
    },
  }
}
