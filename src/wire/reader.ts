// A synchronous pull reader over one buffer. Pure: how bytes get into the buffer is the caller's `pull`.
// Runs on the thread that owns the stream; records are handed out as places in the buffer, not as copies.
//
// What lies in the buffer stays where it is until more bytes are needed than are there. Only then is the buffer
// refilled and the unread rest moved to its front. So a caller that still uses places of earlier records (pages
// joined into a run) looks at `available` before it asks for more.

import assert from 'node:assert/strict'
import { ChannelError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { readU64, viewOf } from './bytes.js'
import { type Codec, idstr } from './codec.js'
import { refuse, type Slice } from './slice.js'

export interface StreamReader {
  readonly bytes: Uint8Array
  readonly view: DataView
  /** Index in `bytes` of the next unread byte. */
  readonly position: number
  /** Unread bytes that are in the buffer already. */
  readonly available: number
  /** Stream offset of the next unread byte. */
  readonly streamOffset: number
  /** Index of `count` contiguous unread bytes; they stay unread. `count` is at most the size of the buffer. */
  need(count: number, record: string): number
  /** Like `need`, and consumes them. */
  take(count: number, record: string): number
  /** True when the stream ends here, with nothing unread. May pull. */
  atEnd(): boolean
  skip(count: number, record: string): void
  u8(record: string): number
  u16(record: string): number
  u32(record: string): number
  /** Errors: `ProtocolError` for 2^53 and more. */
  u64(record: string): number
  idstr(record: string): string
  /** One value, from a stream that does not say how long it is. */
  read<T>(codec: Codec<T>, record: string): T
  /** Fills `target`, which may be longer than the buffer. */
  copyOut(target: Uint8Array, record: string): void
  /** Forgets what is unread, and reads from another connection: `pull` gives its bytes from now on. */
  restart(): void
}

/** Puts 1 to `max` bytes at index `at` of the buffer and returns how many; 0 says that the stream has ended. */
export type Pull = (at: number, max: number) => number

export interface StreamReaderOptions {
  /** Bytes that lie at the start of the buffer already. */
  readonly filled?: number
  /** Stream offset of the first byte. */
  readonly offset?: number
  /** The error for a stream that ends inside a record; a `ChannelError` unless given. */
  readonly ended?: (offset: number, record: string) => Error
}

/**
 * A reader of a stream. The buffer must hold the longest command, 64 KiB.
 * Errors of all reading functions: `ChannelError` when the stream ends inside `record`, and what `pull` throws.
 */
export function createStreamReader(
  bytes: Uint8Array,
  pull: Pull,
  options: StreamReaderOptions = {},
): StreamReader {
  assert(bytes.length >= LIMITS.commandBytesMax, 'buffer too small')
  return new BufferReader(bytes, pull, options)
}

/** A reader of bytes that are all here; it never moves them. `offset`: stream offset of the first one. */
export function readerOf(bytes: Uint8Array, options: Omit<StreamReaderOptions, 'filled'> = {}): StreamReader {
  return new BufferReader(bytes, undefined, { ...options, filled: bytes.length })
}

function endedInside(offset: number, record: string): Error {
  return new ChannelError(`stream ended at offset ${offset} inside ${record}`)
}

// A class, because the three counters change for every record and must live in one object of stable shape.
class BufferReader implements StreamReader {
  readonly bytes: Uint8Array
  readonly view: DataView
  position = 0
  #end: number
  /** Stream offset of index 0 of the buffer; it moves on when the buffer is compacted. */
  #base: number
  /** Undefined once the stream has ended. */
  #pull: Pull | undefined
  readonly #source: Pull | undefined
  readonly #ended: (offset: number, record: string) => Error

  constructor(bytes: Uint8Array, pull: Pull | undefined, options: StreamReaderOptions) {
    this.bytes = bytes
    this.view = viewOf(bytes)
    this.#pull = pull
    this.#source = pull
    this.#end = options.filled ?? 0
    this.#base = options.offset ?? 0
    this.#ended = options.ended ?? endedInside
  }

  get available(): number {
    return this.#end - this.position
  }

  get streamOffset(): number {
    return this.#base + this.position
  }

  need(count: number, record: string): number {
    if (this.#end - this.position < count && !this.#refill(count)) {
      throw this.#ended(this.#base + this.#end, record)
    }
    return this.position
  }

  take(count: number, record: string): number {
    const at = this.need(count, record)
    this.position = at + count
    return at
  }

  /** Makes `count` bytes available; false when the stream ends before. */
  #refill(count: number): boolean {
    if (this.#pull === undefined) return false
    assert(count <= this.bytes.length, `${count} bytes asked of a buffer of ${this.bytes.length}`)
    this.#compact()
    while (this.#end < count) {
      const room = this.bytes.length - this.#end
      const got = this.#pull(this.#end, room)
      assert(Number.isInteger(got) && got >= 0 && got <= room, 'pull returns 0..max')
      if (got === 0) {
        this.#pull = undefined
        return false
      }
      this.#end += got
    }
    return true
  }

  #compact(): void {
    if (this.position === 0) return
    this.bytes.copyWithin(0, this.position, this.#end)
    this.#end -= this.position
    this.#base += this.position
    this.position = 0
  }

  atEnd(): boolean {
    return this.#end === this.position && !this.#refill(1)
  }

  skip(count: number, record: string): void {
    let left = count
    while (left > this.available) {
      left -= this.available
      this.position = this.#end
      this.need(1, record)
    }
    this.position += left
  }

  copyOut(target: Uint8Array, record: string): void {
    let at = 0
    while (at < target.length) {
      this.need(1, record)
      const count = Math.min(this.available, target.length - at)
      target.set(this.bytes.subarray(this.position, this.position + count), at)
      this.position += count
      at += count
    }
  }

  restart(): void {
    this.#base += this.#end
    this.position = 0
    this.#end = 0
    this.#pull = this.#source
  }

  u8(record: string): number {
    return this.view.getUint8(this.take(1, record))
  }

  u16(record: string): number {
    return this.view.getUint16(this.take(2, record))
  }

  u32(record: string): number {
    return this.view.getUint32(this.take(4, record))
  }

  u64(record: string): number {
    const value = readU64(this.view, this.take(8, record))
    return value ?? refuse(this.#slice(record), 8, '64-bit value out of range', 'below 2^53')
  }

  idstr(record: string): string {
    return idstr.read(this.#slice(record))
  }

  read<T>(codec: Codec<T>, record: string): T {
    return codec.read(this.#slice(record))
  }

  #slice(record: string): Slice {
    return {
      bytes: this.bytes,
      view: this.view,
      record,
      left: () => Infinity,
      take: (count) => this.take(count, record),
      streamOffset: () => this.streamOffset,
    }
  }
}
