// Bytes at addresses: JS views of native memory, addresses of JS memory, and the C library's block operations.
// Any thread. Never give these functions an address in missing guest RAM on a thread other than the guest's.

import assert from 'node:assert'
import { UsageError } from '../errors.js'
import { hex, koffi, libc } from './libc.js'

/** koffi aborts the whole process on a longer view, and V8 has no longer typed array index range for it. */
const VIEW_BYTES_MAX = 2 ** 32
const WORD = 2 ** 32

/**
 * A view of native memory. It does not keep the mapping alive: using it after `unmap` kills the process.
 * Making one costs microseconds, so make it once. @throws UsageError over 4 GiB.
 */
export function viewOf(address: number, length: number): Uint8Array {
  assert(address > 0 && Number.isSafeInteger(address), `bad address ${address}`)
  if (!Number.isSafeInteger(length) || length < 0 || length > VIEW_BYTES_MAX) {
    throw new UsageError(
      `a view may have at most 4 GiB; ${length} bytes at ${hex(address)} need several views`,
    )
  }
  return new Uint8Array(koffi().view(address, length))
}

/** Address of the first byte of a typed array (also over a WebAssembly.Memory or a SharedArrayBuffer). */
export function addressOf(array: ArrayBufferView): number {
  return Number(koffi().address(array))
}

export function memcpy(destination: number, source: number, length: number): void {
  libc().memcpy(destination, source, length)
}

export function memset(address: number, byte: number, length: number): void {
  libc().memset(address, byte, length)
}

/** 0 if equal, else the sign of the first difference. */
export function memcmp(a: number, b: number, length: number): number {
  return libc().memcmp(a, b, length)
}

let zeroWord: NativeBuffer | undefined

/**
 * Whether all bytes are zero. `length` must be at least 8.
 * The range is compared with itself shifted by a word: if word 0 is zero, so is each that equals its predecessor.
 */
export function isZeroRange(address: number, length: number): boolean {
  assert(length >= 8, 'isZeroRange needs at least 8 bytes')
  zeroWord ??= nativeBuffer(8)
  const { memcmp: compare } = libc()
  // Nobody writes `zeroWord`.
  return compare(address, zeroWord.address, 8) === 0 && compare(address, address + 8, length - 8) === 0
}

/** Memory with a fixed address for structures that the kernel reads and writes. Kept as long as the object is. */
export interface NativeBuffer {
  readonly address: number
  readonly length: number
  readonly bytes: Uint8Array
  /** The same bytes as 32-bit words; byte offset / 4. */
  readonly words: Uint32Array
}

/** Zeroed; `length` in bytes, rounded up to a multiple of 8. */
export function nativeBuffer(length: number): NativeBuffer {
  const buffer = new ArrayBuffer(Math.ceil(length / 8) * 8)
  const bytes = new Uint8Array(buffer)
  return { address: addressOf(bytes), length: bytes.length, bytes, words: new Uint32Array(buffer) }
}

/** Store `value` (0 .. 2^53) as a 64-bit little-endian word at word index `index`. `>>> 0` is modulo 2^32. */
export function setU64(words: Uint32Array, index: number, value: number): void {
  words[index] = value >>> 0
  words[index + 1] = (value / WORD) >>> 0
}

/** Inexact above 2^53: for addresses, lengths and bit sets of less than 53 bits. */
export function getU64(words: Uint32Array, index: number): number {
  return words[index]! + words[index + 1]! * WORD
}

/** Exact within +-2^53. */
export function getS64(words: Uint32Array, index: number): number {
  return words[index]! + (words[index + 1]! | 0) * WORD
}
