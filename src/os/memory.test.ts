import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { UsageError } from '../errors.js'
import { mapAnonymous } from './mapping.js'
import {
  addressOf,
  getS64,
  getU64,
  isZeroRange,
  memcmp,
  memcpy,
  nativeBuffer,
  setU64,
  viewOf,
} from './memory.js'

/** V8's global, which the type library of a pure Node program does not declare. */
declare const WebAssembly: { Memory: new (limits: { initial: number }) => { buffer: ArrayBuffer } }

test('a view over 4 GiB is refused, for it would abort the process', (t) => {
  const mapping = mapAnonymous(2 ** 32 + 4096, { noReserve: true })
  t.after(() => mapping.unmap())
  assert.throws(() => viewOf(mapping.address, 2 ** 32 + 1), UsageError)
  const view = viewOf(mapping.address, 2 ** 32)
  view[2 ** 32 - 1] = 9
  assert.equal(viewOf(mapping.address + 2 ** 32 - 1, 1)[0], 9)
})

test('address of a WebAssembly.Memory, with the offset of the view', () => {
  const memory = new WebAssembly.Memory({ initial: 2 })
  const ram = new Uint8Array(memory.buffer, 4096, 8192)
  ram[7] = 42
  assert.equal(addressOf(ram), addressOf(new Uint8Array(memory.buffer)) + 4096)
  assert.equal(viewOf(addressOf(ram), 8192)[7], 42)
})

test('isZeroRange finds a single byte anywhere', (t) => {
  const mapping = mapAnonymous(4096)
  t.after(() => mapping.unmap())
  const view = viewOf(mapping.address, 4096)
  assert(isZeroRange(mapping.address, 4096))
  assert(isZeroRange(mapping.address, 8))
  const anywhere = fc.property(fc.nat(4095), fc.integer({ min: 1, max: 255 }), (at, byte) => {
    view[at] = byte
    const zero = isZeroRange(mapping.address, 4096)
    view[at] = 0
    return !zero
  })
  fc.assert(anywhere)
})

test('patterns that repeat are not zero', (t) => {
  const mapping = mapAnonymous(4096)
  t.after(() => mapping.unmap())
  const words = new Float64Array(viewOf(mapping.address, 4096).buffer)
  for (const pattern of [[1], [0, 1], [0, 0, 0, 1]]) {
    words.forEach((_, i) => {
      words[i] = pattern[i % pattern.length]!
    })
    assert(!isZeroRange(mapping.address, 4096), String(pattern))
  }
})

test('memcpy and memcmp by address', () => {
  const a = nativeBuffer(64)
  const b = nativeBuffer(64)
  a.bytes.fill(5)
  memcpy(b.address + 8, a.address, 16)
  assert.deepEqual([b.bytes[7], b.bytes[8], b.bytes[23], b.bytes[24]], [0, 5, 5, 0])
  assert.equal(memcmp(a.address, b.address + 8, 16), 0)
  assert.notEqual(memcmp(a.address, b.address, 16), 0)
})

test('64-bit words as halves', () => {
  const { bytes, words } = nativeBuffer(16)
  const wide = new DataView(bytes.buffer)
  fc.assert(
    fc.property(fc.maxSafeNat(), (value) => {
      setU64(words, 2, value)
      assert.equal(wide.getBigUint64(8, true), BigInt(value))
      assert.equal(getU64(words, 2), value)
    }),
  )
  fc.assert(
    fc.property(fc.maxSafeInteger(), (value) => {
      wide.setBigInt64(8, BigInt(value), true)
      assert.equal(getS64(words, 2), value)
    }),
  )
})
