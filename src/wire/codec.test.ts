import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../errors.js'
import {
  type Codec,
  constant,
  counted,
  decodeWhole,
  encode,
  idstr,
  many,
  optional,
  raw,
  record,
  str8,
  u8,
  u16,
  u32,
  u64,
} from './codec.js'
import { sliceOf } from './slice.js'

const decode = <T>(codec: Codec<T>, bytes: Uint8Array): T =>
  decodeWhole(codec, sliceOf(bytes, 0, bytes.length, 0, 'test'))

const everything = record({
  version: constant(u8, 7),
  small: u8,
  name: idstr,
  text: str8,
  port: u16,
  list: counted(u32, 10),
  id: raw(4),
  big: u64,
  tail: many(record({ start: u64, length: u32 }), 1),
})

const bytewise = (minLength: number) =>
  fc.uint8Array({ minLength, maxLength: 255 }).map((bytes) => Buffer.from(bytes).toString('latin1'))
const u53 = fc.maxSafeNat()
const u32s = fc.nat(0xffff_ffff)
const plain = { noNullPrototype: true } as const
const anything = fc.record(
  {
    small: fc.nat(255),
    name: bytewise(1),
    text: bytewise(0),
    port: fc.nat(65_535),
    list: fc.array(u32s, { maxLength: 10 }),
    id: fc.uint8Array({ minLength: 4, maxLength: 4 }),
    big: u53,
    tail: fc.array(fc.record({ start: u53, length: u32s }, plain), { minLength: 1, maxLength: 20 }),
  },
  plain,
)

test('what is encoded is decoded, for any value', () => {
  fc.assert(
    fc.property(anything, (value) => {
      const bytes = encode(everything, value)
      assert.equal(bytes.length, everything.size(value))
      assert.deepEqual(decode(everything, bytes), value)
    }),
  )
})

test('a body that is too short, at any byte, is a ProtocolError inside of the body', () => {
  fc.assert(
    fc.property(anything, fc.nat(), (value, cut) => {
      const bytes = encode(everything, { ...value, tail: value.tail.slice(0, 1) })
      const length = cut % bytes.length
      assert.throws(
        () => decode(everything, bytes.subarray(0, length)),
        (error) => error instanceof ProtocolError && error.offset <= length,
      )
    }),
  )
})

test('integers are big endian, and lengths that cannot vary are known', () => {
  const layout = record({ a: u8, b: u16, c: u32, d: u64 })
  assert.equal(layout.fixed, 15)
  assert.equal(record({ a: u8, b: str8 }).fixed, undefined)
  const bytes = encode(layout, { a: 1, b: 0x0203, c: 0x04050607, d: 0x1f_ffff_ffff_fffe })
  assert.equal(Buffer.from(bytes).toString('hex'), '01020304050607001ffffffffffffe')
})

test('64-bit values from 2^53 on are refused both ways', () => {
  assert.throws(() => decode(u64, Uint8Array.of(0, 0x20, 0, 0, 0, 0, 0, 0)), { code: 'PROTOCOL', offset: 0 })
  assert.throws(() => encode(u64, 2 ** 53), assert.AssertionError)
  assert.throws(() => encode(u64, -1), assert.AssertionError)
  assert.equal(decode(u64, encode(u64, 2 ** 53 - 1)), 2 ** 53 - 1)
})

test('values that do not fit are a mistake of the caller', () => {
  assert.throws(() => encode(u8, 256), assert.AssertionError)
  assert.throws(() => encode(u32, -1), assert.AssertionError)
  assert.throws(() => encode(idstr, ''), assert.AssertionError)
  assert.throws(() => encode(str8, 'x'.repeat(256)), assert.AssertionError)
  assert.throws(() => encode(str8, '\u0416'), assert.AssertionError)
})

test('a constant is checked and is not part of the value', () => {
  const layout = record({ version: constant(u8, 3), value: u8 })
  assert.deepEqual(decode(layout, Uint8Array.of(3, 9)), { value: 9 })
  assert.throws(() => decode(layout, Uint8Array.of(4, 9)), {
    code: 'PROTOCOL',
    expected: '3',
    got: '4',
    offset: 0,
  })
})

test('bytes behind the value are refused, and lists keep to their bounds', () => {
  assert.throws(() => decode(str8, Uint8Array.of(1, 65, 66)), { code: 'PROTOCOL', offset: 2 })
  assert.throws(() => decode(u32, new Uint8Array(5)), { code: 'PROTOCOL', expected: '4', got: '5' })
  assert.throws(() => decode(many(u8, 1), new Uint8Array(0)), ProtocolError)
  assert.throws(() => decode(counted(u8, 2), Uint8Array.of(0, 0, 0, 3, 1, 1, 1)), {
    code: 'PROTOCOL',
    offset: 0,
  })
  assert.throws(() => decode(idstr, Uint8Array.of(0)), ProtocolError)
})

test('an optional value is there when there are bytes for it', () => {
  assert.equal(decode(optional(u16), new Uint8Array(0)), null)
  assert.equal(decode(optional(u16), Uint8Array.of(1, 0)), 256)
  assert.throws(() => decode(optional(u16), Uint8Array.of(1)), ProtocolError)
  assert.equal(encode(optional(u16), null).length, 0)
})

test('errors give the offset in the stream', () => {
  const slice = sliceOf(Uint8Array.of(9, 9, 0, 1), 2, 4, 1000, 'PING')
  assert.throws(() => u32.read(slice), { code: 'PROTOCOL', offset: 1000, record: 'PING' })
})

test('raw bytes are copied, also out of a Buffer', () => {
  const buffer = Buffer.from([1, 2])
  const copy = decode(raw(2), buffer)
  buffer[0] = 9
  assert.deepEqual(copy, Uint8Array.of(1, 2))
})
