// The other side of the rehearsal: what a source would say, and the faults that a guest would take. Destination thread;
// never blocks: there is one thing under way at a time, and it fits into a socket's buffer.

import { closeFd, sendWhole, socketPair, tryRead } from '../os/channel.js'
import { type NativeBuffer, nativeBuffer } from '../os/memory.js'
import { createPageFault } from '../os/userfaultfd-events.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { encodeCommand } from '../wire/messages.js'
import { encodePackage } from '../wire/package.js'
import { encodeRamItem } from '../wire/ram-item.js'
import { encodeRamSetup } from '../wire/ram-setup.js'
import { RAM_END, RAM_FLAGS, writeRamWord } from '../wire/ram-stream.js'
import {
  END_OF_STREAM,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionEnd,
  encodeSectionPart,
  encodeSectionStart,
} from '../wire/sections.js'

/** Pages that come by precopy before the next is heard of. */
const CHUNK_PAGES = 32
const RAM_ID = 2
/** Of the one RAM block. */
export const BLOCK_NAME = 'rehearsal'
const RECORD_BYTES = 8 + TARGET_PAGE_BYTES
const GUEST_THREAD_ID = 1

export interface RehearsalSource {
  /** Descriptors of the destination: the connection, and what stands for the userfaultfd. */
  readonly channelFd: number
  readonly faultsFd: number
  /** Readable when the destination has said something; then `hear` is to be called. */
  readonly hearFd: number
  hear(): void
  /** From now on the "guest" at this address touches its pages, one after another. */
  run(ramAddress: number): void
  close(): void
}

/** @param length of the one RAM block, bytes: a multiple of 128 KiB */
export function createRehearsalSource(length: number): RehearsalSource {
  const [channelFd, far] = socketPair()
  const [faultsFd, guest] = socketPair()
  const heard = nativeBuffer(TARGET_PAGE_BYTES)
  const chunk = createChunk()
  const record = nativeBuffer(RECORD_BYTES)
  const recordView = new DataView(record.bytes.buffer)
  const fault = createPageFault(GUEST_THREAD_ID)
  let sent = 0
  let touched = 0
  let ram = 0

  const send = ({ address, length }: NativeBuffer): void => sendWhole(far, address, length)
  const say = (...parts: readonly Uint8Array[]): void => send(nativeCopy(Buffer.concat(parts)))

  function touch(start: number): void {
    touched = start
    fault.setAddress(ram + start)
    sendWhole(guest, fault.address, fault.length)
  }

  function precopy(): void {
    send(chunk.at(sent))
    sent += CHUNK_PAGES * TARGET_PAGE_BYTES
  }

  /** To the page that was asked for: it, and the next one is touched. */
  function answer(): void {
    writeRamWord(recordView, 0, touched, RAM_FLAGS.PAGE | RAM_FLAGS.CONTINUE)
    send(record)
    if (touched + TARGET_PAGE_BYTES < length) touch(touched + TARGET_PAGE_BYTES)
    else say(RAM_END, encodeFooter(RAM_ID), END_OF_STREAM)
  }

  say(...opening(length))
  return {
    channelFd,
    faultsFd,
    hearFd: far,
    hear() {
      tryRead(far, heard.address, heard.length)
      if (ram !== 0) answer()
      else if (sent < length) precopy()
      else say(...switchover(length))
    },
    run(ramAddress) {
      ram = ramAddress
      touch(0)
    },
    close() {
      for (const fd of [channelFd, far, faultsFd, guest]) closeFd(fd)
    },
  }
}

function opening(length: number): readonly Uint8Array[] {
  const sizes = { pageSizeSummary: TARGET_PAGE_BYTES, targetPageSize: TARGET_PAGE_BYTES }
  const block = { name: BLOCK_NAME, length, pageSize: TARGET_PAGE_BYTES }
  return [
    encodeHeader(),
    encodeConfiguration({ machine: 'farfault-rehearsal' }),
    encodeCommand({ name: 'OPEN_RETURN_PATH' }),
    encodeCommand({ name: 'POSTCOPY_ADVISE', sizes }),
    encodeSectionStart({ id: RAM_ID, idstr: 'ram', instance: 0, version: 4 }),
    encodeRamSetup([block], { postcopy: true }),
    encodeFooter(RAM_ID),
    encodeSectionPart(RAM_ID),
    // The block is named once; the page comes again.
    encodeRamItem({ kind: 'zero', blockName: BLOCK_NAME, offset: 0, fill: 0, data: new Uint8Array(0) }),
    RAM_END,
    encodeFooter(RAM_ID),
    encodeCommand({ name: 'PING', value: 1 }),
  ]
}

function switchover(length: number): readonly Uint8Array[] {
  const content = encodePackage({ devices: new Uint8Array(0), ping: 3 })
  return [
    encodeCommand({ name: 'POSTCOPY_RAM_DISCARD', block: BLOCK_NAME, ranges: [{ start: 0, length }] }),
    encodeCommand({ name: 'PACKAGED', length: content.length }),
    content,
    encodeSectionEnd(RAM_ID),
  ]
}

/** A section of pages and a PING; the same bytes with other offsets each time. */
function createChunk(): { at(start: number): NativeBuffer } {
  const before = encodeSectionPart(RAM_ID)
  const after = Buffer.concat([RAM_END, encodeFooter(RAM_ID), encodeCommand({ name: 'PING', value: 1 })])
  const pages = new Uint8Array(CHUNK_PAGES * RECORD_BYTES)
  const buffer = nativeCopy(Buffer.concat([before, pages, after]))
  const view = new DataView(buffer.bytes.buffer)
  return {
    at(start) {
      for (let page = 0; page < CHUNK_PAGES; page++) {
        const offset = start + page * TARGET_PAGE_BYTES
        writeRamWord(view, before.length + page * RECORD_BYTES, offset, RAM_FLAGS.PAGE | RAM_FLAGS.CONTINUE)
      }
      return buffer
    },
  }
}

function nativeCopy(bytes: Uint8Array): NativeBuffer {
  const buffer = nativeBuffer(bytes.length)
  buffer.bytes.set(bytes)
  return { ...buffer, length: bytes.length }
}
