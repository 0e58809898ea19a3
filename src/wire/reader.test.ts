import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ChannelError, ProtocolError } from '../errors.js'
import { idstr, record, u32 } from './codec.js'
import { createStreamReader, readerOf, type StreamReader } from './reader.js'

const BUFFER_BYTES = 65_536

/** A stream of `total` bytes, byte n being n modulo 251, delivered `chunk` at a time; `pulls` counts. */
function counting(total: number, chunk: number) {
  const buffer = new Uint8Array(BUFFER_BYTES)
  const stats = { pulls: 0 }
  let sent = 0
  const reader = createStreamReader(buffer, (at, max) => {
    stats.pulls++
    const count = Math.min(chunk, max, total - sent)
    for (let i = 0; i < count; i++) buffer[at + i] = (sent + i) % 251
    sent += count
    return count
  })
  return { reader, stats }
}

function expectAt(reader: StreamReader, at: number, offset: number, count: number): void {
  for (let i = 0; i < count; i++) assert.equal(reader.bytes[at + i], (offset + i) % 251)
}

for (const chunk of [1, 1000, 65_536]) {
  test(`bytes come in order over many refills, ${chunk} at a time`, { timeout: 90_000 }, () => {
    const total = 400_000
    const { reader } = counting(total, chunk)
    let offset = 0
    for (let i = 0; offset < total - 5000; i++) {
      const count = 1 + ((i * 337) % 4400)
      assert.equal(reader.streamOffset, offset)
      expectAt(reader, reader.take(count, 'test'), offset, count)
      offset += count
    }
    reader.skip(total - offset, 'rest')
    assert.equal(reader.streamOffset, total)
    assert.equal(reader.atEnd(), true)
  })
}

test('the buffer is not touched while it holds what is needed', () => {
  const { reader, stats } = counting(200_000, 200_000)
  const first = reader.take(100, 'test')
  assert.equal(stats.pulls, 1)
  assert.equal(reader.available, BUFFER_BYTES - 100)
  reader.take(reader.available, 'test')
  expectAt(reader, first, 0, 100)
  assert.equal(stats.pulls, 1)
  reader.need(1, 'test')
  assert.deepEqual([reader.position, reader.streamOffset, stats.pulls], [0, BUFFER_BYTES, 2])
})

test('need leaves the bytes unread', () => {
  const { reader } = counting(10, 3)
  assert.equal(reader.need(7, 'test'), reader.position)
  assert.equal(reader.need(7, 'test'), 0)
  assert.equal(reader.available, 9)
  assert.equal(reader.streamOffset, 0)
})

test('an end inside of a record says where and in what', () => {
  const { reader } = counting(10, 4)
  reader.take(8, 'head')
  assert.equal(reader.atEnd(), false)
  assert.throws(() => reader.take(3, 'section header'), {
    name: 'ChannelError',
    message: 'stream ended at offset 10 inside section header',
  })
  assert.equal(reader.take(2, 'rest'), reader.position - 2)
  assert.equal(reader.atEnd(), true)
  assert.throws(() => reader.skip(1, 'more'), ChannelError)
})

test('copyOut and skip take more than the buffer holds', () => {
  const { reader } = counting(500_000, 10_000)
  reader.skip(100_001, 'test')
  const target = new Uint8Array(300_000)
  reader.copyOut(target, 'package')
  assert(target.every((byte, i) => byte === (100_001 + i) % 251))
  assert.equal(reader.streamOffset, 400_001)
  assert.throws(() => reader.copyOut(target, 'package'), ChannelError)
})

test('asking for more than the buffer is a mistake of the caller', () => {
  const { reader } = counting(200_000, 1000)
  assert.throws(() => reader.need(BUFFER_BYTES + 1, 'test'), assert.AssertionError)
  assert.throws(() => createStreamReader(new Uint8Array(100), () => 0), assert.AssertionError)
})

test('integers, names and codecs are read from the stream', () => {
  const bytes = Uint8Array.of(1, 2, 3, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 2, 97, 98, 0, 0, 0, 5, 1, 99)
  const reader = readerOf(bytes, { offset: 50 })
  assert.equal(reader.u8('a'), 1)
  assert.equal(reader.u16('b'), 0x0203)
  assert.equal(reader.u32('c'), 4)
  assert.equal(reader.u64('d'), 2 ** 32)
  assert.equal(reader.idstr('e'), 'ab')
  assert.deepEqual(reader.read(record({ id: u32, name: idstr }), 'f'), { id: 5, name: 'c' })
  assert.equal(reader.streamOffset, 50 + bytes.length)
  assert.equal(reader.atEnd(), true)
})

test('a reader of given bytes never moves them and makes its own error of an early end', () => {
  const bytes = Uint8Array.from({ length: 64 }, (_, i) => i)
  const ended = (offset: number, name: string) => new ProtocolError('too short', { offset, record: name })
  const reader = readerOf(bytes, { offset: 1000, ended })
  reader.take(60, 'test')
  assert.throws(() => reader.need(5, 'tail'), { code: 'PROTOCOL', offset: 1064, record: 'tail' })
  assert.deepEqual(
    bytes,
    Uint8Array.from({ length: 64 }, (_, i) => i),
  )
})

test('a reader can begin with bytes that lie in its buffer', () => {
  const buffer = new Uint8Array(BUFFER_BYTES)
  buffer.set([1, 2, 3])
  const reader = createStreamReader(buffer, () => 0, { filled: 3, offset: 7 })
  assert.equal(reader.available, 3)
  assert.equal(reader.take(3, 'test'), 0)
  assert.equal(reader.streamOffset, 10)
  assert.equal(reader.atEnd(), true)
})
