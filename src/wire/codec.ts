// Codecs: what a field looks like in bytes. Pure; any thread. Every format of the protocol is a table made of these.
//
// A codec is three functions, so a length can always be derived from the layout and never has to be kept by hand.
// All integers are big endian. 64-bit values are JS numbers: what does not fit in 2^53 is not a value we can mean.

import assert from 'node:assert/strict'
import { copyOf, latin1, readU64, viewOf, writeLatin1, writeU64 } from './bytes.js'
import { refuse, type Slice } from './slice.js'

export interface Codec<T> {
  /** Encoded length, bytes. */
  size(value: T): number
  /** Writes at index `at`; returns the index after the last byte written. */
  write(view: DataView, at: number, value: T): number
  read(slice: Slice): T
  /** Encoded length, bytes, when it is the same for every value. */
  readonly fixed?: number
}

/** The type of the values of a codec. */
export type Value<C> = C extends Codec<infer T> ? T : never

function uint(
  bytes: 1 | 2 | 4,
  get: (view: DataView, at: number) => number,
  set: (view: DataView, at: number, value: number) => void,
): Codec<number> {
  const end = 2 ** (8 * bytes)
  return {
    fixed: bytes,
    size: () => bytes,
    write(view, at, value) {
      assert(Number.isInteger(value) && value >= 0 && value < end, `does not fit in u${8 * bytes}: ${value}`)
      set(view, at, value)
      return at + bytes
    },
    read: (slice) => get(slice.view, slice.take(bytes)),
  }
}

export const u8: Codec<number> = uint(
  1,
  (view, at) => view.getUint8(at),
  (view, at, value) => view.setUint8(at, value),
)
export const u16: Codec<number> = uint(
  2,
  (view, at) => view.getUint16(at),
  (view, at, value) => view.setUint16(at, value),
)
export const u32: Codec<number> = uint(
  4,
  (view, at) => view.getUint32(at),
  (view, at, value) => view.setUint32(at, value),
)

/** Big-endian u64 as a number. Errors: `ProtocolError` for 2^53 and more. */
export const u64: Codec<number> = {
  fixed: 8,
  size: () => 8,
  write(view, at, value) {
    writeU64(view, at, value)
    return at + 8
  },
  read(slice) {
    return readU64(slice.view, slice.take(8)) ?? refuse(slice, 8, '64-bit value out of range', 'below 2^53')
  },
}

/** A length field, then that many bytes of text. `min` and `max` bound the length, both ways. */
export function text(length: Codec<number>, min: number, max: number): Codec<string> {
  const prefix = length.fixed ?? assert.fail('a length field has a fixed size')
  return {
    size: (value) => prefix + value.length,
    write(view, at, value) {
      assert(
        value.length >= min && value.length <= max,
        `length of ${JSON.stringify(value)} is not ${min}..${max}`,
      )
      const start = length.write(view, at, value.length)
      writeLatin1(new Uint8Array(view.buffer, view.byteOffset), start, value)
      return start + value.length
    },
    read(slice) {
      const count = length.read(slice)
      if (count < min || count > max) refuse(slice, prefix, 'bad string length', `${min}..${max}`, `${count}`)
      const at = slice.take(count)
      return latin1(slice.bytes, at, at + count)
    },
  }
}

/** One length byte, then up to 255 bytes. */
export const str8: Codec<string> = text(u8, 0, 255)

/** A `str8` that must not be empty: an idstr of a section, the name of a RAM block. */
export const idstr: Codec<string> = text(u8, 1, 255)

/** `count` raw bytes; what is read is a copy. */
export function raw(count: number): Codec<Uint8Array> {
  return {
    fixed: count,
    size: () => count,
    write(view, at, value) {
      assert(value.length === count, `expected ${count} bytes, have ${value.length}`)
      new Uint8Array(view.buffer, view.byteOffset).set(value, at)
      return at + count
    },
    read(slice) {
      const at = slice.take(count)
      return copyOf(slice.bytes, at, at + count)
    },
  }
}

/** A field that always has the same value. It is checked when read and is not part of a record's value. */
export function constant(codec: Codec<number>, expected: number): Codec<undefined> {
  return {
    ...codec,
    size: () => codec.size(expected),
    write: (view, at) => codec.write(view, at, expected),
    read(slice) {
      const got = codec.read(slice)
      if (got !== expected) refuse(slice, codec.size(got), 'unexpected value', `${expected}`, `${got}`)
      return undefined
    },
  }
}

/** As many values as fit up to the end of the slice, at least `min`. Last field of a body only. */
export function many<T>(codec: Codec<T>, min = 0): Codec<readonly T[]> {
  return {
    size: (values) => values.reduce((sum, value) => sum + codec.size(value), 0),
    write: (view, at, values) => values.reduce((next, value) => codec.write(view, next, value), at),
    read(slice) {
      assert(slice.left() !== Infinity, 'a list without a count needs a slice with an end')
      const values: T[] = []
      while (slice.left() > 0) values.push(codec.read(slice))
      if (values.length < min) refuse(slice, 0, 'list too short', `at least ${min}`, `${values.length}`)
      return values
    },
  }
}

/** A u32 count, then that many values, at most `max`. */
export function counted<T>(codec: Codec<T>, max: number): Codec<readonly T[]> {
  return {
    size: (values) => 4 + values.reduce((sum, value) => sum + codec.size(value), 0),
    write(view, at, values) {
      assert(values.length <= max, `list of ${values.length} is longer than ${max}`)
      return values.reduce(
        (next, value) => codec.write(view, next, value),
        u32.write(view, at, values.length),
      )
    },
    read(slice) {
      const count = u32.read(slice)
      if (count > max) refuse(slice, 4, 'list too long', `at most ${max}`, `${count}`)
      return Array.from({ length: count }, () => codec.read(slice))
    },
  }
}

/** A value that is there if anything is left in the slice. Last field of a body only. */
export function optional<T>(codec: Codec<T>): Codec<T | null> {
  return {
    size: (value) => (value === null ? 0 : codec.size(value)),
    write: (view, at, value) => (value === null ? at : codec.write(view, at, value)),
    read: (slice) => (slice.left() === 0 ? null : codec.read(slice)),
  }
}

type Fields = Readonly<Record<string, Codec<unknown>>>

/** The values of a record's fields, by name; constants have none. */
export type RecordValue<F> = {
  readonly [K in keyof F as [Value<F[K]>] extends [undefined] ? never : K]: Value<F[K]>
}

/** Fields one after the other, in the order in which they are written here. */
export function record<F extends Fields>(fields: F): Codec<RecordValue<F>> {
  const entries = Object.entries(fields) as unknown as [string, Codec<unknown>][]
  const fixed = entries.reduce<number | undefined>((sum, [, codec]) => {
    return sum === undefined || codec.fixed === undefined ? undefined : sum + codec.fixed
  }, 0)
  const layout: Codec<Record<string, unknown>> = {
    size: (value) => entries.reduce((sum, [name, codec]) => sum + codec.size(value[name]), 0),
    write: (view, at, value) =>
      entries.reduce((next, [name, codec]) => codec.write(view, next, value[name]), at),
    read(slice) {
      const value: Record<string, unknown> = {}
      for (const [name, codec] of entries) {
        const field = codec.read(slice)
        if (field !== undefined) value[name] = field
      }
      return value
    },
  }
  return { ...layout, ...(fixed === undefined ? {} : { fixed }) } as unknown as Codec<RecordValue<F>>
}

/** A body without bytes. */
export const nothing = record({})

/** The bytes of one value. */
export function encode<T>(codec: Codec<T>, value: T): Uint8Array {
  const bytes = new Uint8Array(codec.size(value))
  const end = codec.write(viewOf(bytes), 0, value)
  assert(end === bytes.length)
  return bytes
}

/**
 * Decodes a value from a body of known length, and makes sure that the body holds nothing else.
 * Errors: `ProtocolError` naming the slice's record.
 */
export function decodeWhole<T>(codec: Codec<T>, slice: Slice): T {
  if (codec.fixed !== undefined && codec.fixed !== slice.left()) {
    refuse(slice, 0, 'wrong length', `${codec.fixed}`, `${slice.left()}`)
  }
  const value = codec.read(slice)
  if (slice.left() !== 0) refuse(slice, 0, 'body too long', 'its end', `${slice.left()} more bytes`)
  return value
}
