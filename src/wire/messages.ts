// Commands (source to destination) and return-path messages (destination to source), as tables. Pure; any thread.
//
// Both kinds have an id, a length and a body; the length column of QEMU's own tables follows from the codecs here.
// Source: QEMU migration/savevm.c, `enum qemu_vm_cmd`; migration/migration.c, `enum mig_rp_message_type`.

import assert from 'node:assert/strict'
import { ChannelError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { concat, readU64, viewOf, writeU64 } from './bytes.js'
import { constant, idstr, many, nothing, optional, record, u8, u32, u64, type Value } from './codec.js'
import { decodeFrame, encodeFrame, FRAME_BYTES, frameHeader, frameKind, type Message } from './frames.js'
import type { StreamReader } from './reader.js'
import { RECORD_IDS } from './sections.js'
import { refuseAt } from './slice.js'

/** Part of a RAM block, bytes; both are multiples of the block's page size. */
const range = record({ start: u64, length: u64 })
export type BlockRange = Value<typeof range>

/** OR of the page sizes of all RAM blocks, and the unit of page records. Both ends must have the same. */
const sizes = record({ pageSizeSummary: u64, targetPageSize: u64 })

/** Record type 08: u16 id · u16 length · body. */
export const COMMANDS = {
  OPEN_RETURN_PATH: { id: 1, body: nothing },
  PING: { id: 2, body: record({ value: u32 }) },
  /** Without sizes: postcopy of dirty bitmaps only, no RAM. */
  POSTCOPY_ADVISE: { id: 3, body: record({ sizes: optional(sizes) }) },
  POSTCOPY_LISTEN: { id: 4, body: nothing },
  POSTCOPY_RUN: { id: 5, body: nothing },
  POSTCOPY_RAM_DISCARD: {
    id: 6,
    body: record({ version: constant(u8, 0), block: idstr, nul: constant(u8, 0), ranges: many(range, 1) }),
  },
  /** `length` bytes follow the record and are not part of it: see package.ts. */
  PACKAGED: { id: 7, body: record({ length: u32 }) },
  ENABLE_COLO: { id: 8, body: nothing },
  POSTCOPY_RESUME: { id: 9, body: nothing },
  RECV_BITMAP: { id: 10, body: record({ block: idstr }) },
  /** Only to QEMU 10.0 and newer. */
  SWITCHOVER_START: { id: 11, body: nothing },
} as const

/** u16 id · u16 length · body, in the direction from the destination to the source. */
export const RETURN_PATH = {
  /** 0: the destination has everything and goes on alone. Anything else: it failed. */
  SHUT: { id: 1, body: record({ value: u32 }) },
  PONG: { id: 2, body: record({ value: u32 }) },
  REQ_PAGES_ID: { id: 3, body: record({ start: u64, length: u32, block: idstr }) },
  /** In the block of the last REQ_PAGES_ID. */
  REQ_PAGES: { id: 4, body: record({ start: u64, length: u32 }) },
  /** The bitmap follows the message and is not part of its length: see `ReceivedBitmap`. */
  RECV_BITMAP: { id: 5, body: record({ block: idstr }) },
  RESUME_ACK: { id: 6, body: record({ value: u32 }) },
  /** Since QEMU 8.1. */
  SWITCHOVER_ACK: { id: 7, body: nothing },
} as const

export type Command = Message<typeof COMMANDS>

/** A return-path message without the bytes that follow RECV_BITMAP. */
type ReturnFrame = Message<typeof RETURN_PATH>

const COMMAND_FRAMES = frameKind('command', COMMANDS, LIMITS.commandBytesMax)
const RETURN_FRAMES = frameKind('return-path message', RETURN_PATH, LIMITS.returnPathBytesMax)

/** The whole record: type byte, frame, body. */
export function encodeCommand(command: Command): Uint8Array {
  const bytes = encodeFrame(COMMAND_FRAMES, command, 1)
  bytes[0] = RECORD_IDS.COMMAND
  return bytes
}

/** PINGs, one after the other in the same bytes: a push has thousands. */
export function createPing(): (value: number) => Uint8Array {
  const bytes = encodeCommand({ name: 'PING', value: 0 })
  const view = viewOf(bytes)
  return (value) => {
    view.setUint32(bytes.length - 4, value)
    return bytes
  }
}

/**
 * What follows the type byte of a command.
 * Errors: `ProtocolError` for an unknown command, a wrong length, a body that is not what the command has.
 */
export function readCommand(reader: StreamReader): Command {
  const offset = reader.streamOffset
  const header = frameHeader(COMMAND_FRAMES, reader.u16('command'), reader.u16('command'), offset)
  const at = reader.take(header.length, header.name)
  return decodeFrame(header, reader.bytes, at, offset + FRAME_BYTES) as Command
}

/** One bit a target page of the block, least significant first; 1: the destination has placed the page. */
export interface ReceivedBitmap {
  readonly name: 'RECV_BITMAP'
  readonly block: string
  readonly bitmap: Uint8Array
}

export type ReturnMessage = Exclude<ReturnFrame, { name: 'RECV_BITMAP' }> | ReceivedBitmap

/** The mark is beyond 2^53, so it is compared by halves. */
const END_MARK = [0x0123_4567, 0x89ab_cdef] as const

/** Bytes of the received bitmap of a block of `pages` target pages: whole 64-bit words. */
export function receivedBitmapBytes(pages: number): number {
  return 8 * Math.ceil(pages / 64)
}

export function encodeReturnMessage(message: ReturnMessage): Uint8Array {
  if (message.name === 'RECV_BITMAP') return encodeReceivedBitmap(message.block, message.bitmap)
  return encodeFrame(RETURN_FRAMES, message)
}

/** `bits`: as in `ReceivedBitmap`, a whole number of 64-bit words. */
export function encodeReceivedBitmap(block: string, bits: Uint8Array): Uint8Array {
  assert(bits.length % 8 === 0, 'bitmaps are sent in whole 64-bit words')
  const size = new Uint8Array(8)
  writeU64(viewOf(size), 0, bits.length)
  const mark = new Uint8Array(8)
  viewOf(mark).setUint32(0, END_MARK[0])
  viewOf(mark).setUint32(4, END_MARK[1])
  return concat([encodeFrame(RETURN_FRAMES, { name: 'RECV_BITMAP', block }), size, bits, mark])
}

const REQ_PAGES_BYTES = FRAME_BYTES + RETURN_PATH.REQ_PAGES.body.fixed!
const PONG_BYTES = FRAME_BYTES + RETURN_PATH.PONG.body.fixed!
/** Id and length as one word. */
const REQ_PAGES_HEAD = RETURN_PATH.REQ_PAGES.id * 2 ** 16 + RETURN_PATH.REQ_PAGES.body.fixed!
const PONG_HEAD = RETURN_PATH.PONG.id * 2 ** 16 + RETURN_PATH.PONG.body.fixed!
/** A 64-bit value is below 2^53 when its high half is below this. */
const HIGH_HALF_END = 2 ** 21

const u32At = (bytes: Uint8Array, at: number): number =>
  ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0

export interface ReturnPathParser {
  /**
   * Takes the next bytes, split anywhere: the first `count` of `bytes`, or all. Delivers all messages that they complete
   * before it returns. Errors: `ProtocolError`; the parser is of no use after that.
   */
  feed(bytes: Uint8Array, count?: number): void
  /** The stream has ended. Errors: `ChannelError` when that was inside of a message. */
  end(): void
}

export interface ReturnPathOptions {
  /**
   * How long the received bitmap of a block must be (`receivedBitmapBytes`), or that there is no such block. Without it no bitmap
   * is expected, and one is a `ProtocolError`: it is only asked for in recovery.
   */
  readonly expectedBitmapBytes?: (block: string) => number | undefined
  /** Gets REQ_PAGES instead of `onMessage`, without an object made for it: a guest thread waits. */
  readonly onRequest?: (start: number, length: number) => void
  /** Gets PONG, in the same way: there are thousands. */
  readonly onPong?: (value: number) => void
}

export function createReturnPathParser(
  onMessage: (message: ReturnMessage) => void,
  options: ReturnPathOptions = {},
): ReturnPathParser {
  const {
    expectedBitmapBytes = () => undefined,
    onRequest = (start, length) => onMessage({ name: 'REQ_PAGES', start, length }),
    onPong = (value) => onMessage({ name: 'PONG', value }),
  } = options
  const scratch = new Uint8Array(RETURN_FRAMES.bodyBytesMax)
  let offset = 0
  // What the next bytes are for: they fill `target`, then `complete` is called with its stream offset.
  let target: Uint8Array = scratch
  let filled = 0
  let complete: (start: number) => void

  function expect(into: Uint8Array, then: (start: number) => void): void {
    target = into
    filled = 0
    complete = then
  }

  function expectFrame(): void {
    const header = scratch.subarray(0, FRAME_BYTES)
    expect(header, (start) => {
      const view = viewOf(header)
      const frame = frameHeader(RETURN_FRAMES, view.getUint16(0), view.getUint16(2), start)
      expect(scratch.subarray(0, frame.length), (bodyStart) => {
        const message = decodeFrame(frame, scratch, 0, bodyStart) as ReturnFrame
        if (message.name === 'RECV_BITMAP') expectBitmap(message.block)
        else deliver(message)
      })
    })
  }

  function deliver(message: ReturnMessage): void {
    // First ready for the next one: the receiver may throw, or look at `end`.
    expectFrame()
    if (message.name === 'REQ_PAGES') onRequest(message.start, message.length)
    else if (message.name === 'PONG') onPong(message.value)
    else onMessage(message)
  }

  function expectBitmap(block: string): void {
    const word = scratch.subarray(0, 8)
    expect(word, (start) => {
      const size = readU64(viewOf(word), 0)
      const expected = expectedBitmapBytes(block)
      if (expected === undefined || size !== expected) {
        const what = expected === undefined ? 'bitmap not expected' : 'bitmap of wrong size'
        return refuseAt(start, 'RECV_BITMAP', what, `${expected ?? 'no'} bytes`, `${size} bytes of ${block}`)
      }
      const bitmap = new Uint8Array(expected)
      expect(bitmap, () => expectEndMark({ name: 'RECV_BITMAP', block, bitmap }))
    })
  }

  function expectEndMark(message: ReceivedBitmap): void {
    const word = scratch.subarray(0, 8)
    expect(word, (start) => {
      const view = viewOf(word)
      if (view.getUint32(0) !== END_MARK[0] || view.getUint32(4) !== END_MARK[1]) {
        refuseAt(start, 'RECV_BITMAP', 'end mark of the bitmap missing')
      }
      deliver(message)
    })
  }

  expectFrame()
  /** Takes whole REQ_PAGES and PONGs off the front, without the machinery that all others go through. */
  function feedFrequent(bytes: Uint8Array, end: number): number {
    let at = 0
    if (filled !== 0 || target.length !== FRAME_BYTES) return at
    while (end - at >= PONG_BYTES) {
      const head = u32At(bytes, at)
      if (head === PONG_HEAD) {
        offset += PONG_BYTES
        at += PONG_BYTES
        onPong(u32At(bytes, at - 4))
      } else {
        if (head !== REQ_PAGES_HEAD || end - at < REQ_PAGES_BYTES) break
        const high = u32At(bytes, at + 4)
        if (high >= HIGH_HALF_END) break // refused below
        offset += REQ_PAGES_BYTES
        at += REQ_PAGES_BYTES
        onRequest(high * 2 ** 32 + u32At(bytes, at - 8), u32At(bytes, at - 4))
      }
    }
    return at
  }

  return {
    feed(bytes, end = bytes.length) {
      let at = feedFrequent(bytes, end)
      if (at === end) return
      // A body may be empty, so completing comes before asking whether there is more.
      for (;;) {
        const count = Math.min(end - at, target.length - filled)
        target.set(bytes.subarray(at, at + count), filled)
        at += count
        filled += count
        offset += count
        if (filled < target.length) return
        complete(offset - target.length)
      }
    },
    end() {
      if (target.length === FRAME_BYTES && filled === 0) return
      throw new ChannelError(`return path ended at offset ${offset} inside a message`)
    },
  }
}
