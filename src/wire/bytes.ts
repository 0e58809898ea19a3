// Small helpers for bytes: big-endian 64-bit numbers, names, joining. Pure; any thread.

import assert from 'node:assert/strict'

const U32_SPAN = 2 ** 32

/** Low bits of the high half that a number below 2^53 can have. */
const HIGH_HALF_END = 2 ** 21

/** Writes a non-negative integer below 2^53 as a big-endian u64. */
export function writeU64(view: DataView, at: number, value: number): void {
  assert(Number.isSafeInteger(value) && value >= 0, `not an unsigned 53-bit integer: ${value}`)
  view.setUint32(at, value / U32_SPAN)
  view.setUint32(at + 4, value % U32_SPAN)
}

/** Reads a big-endian u64; `undefined` when it is 2^53 or more. */
export function readU64(view: DataView, at: number): number | undefined {
  const high = view.getUint32(at)
  return high < HIGH_HALF_END ? high * U32_SPAN + view.getUint32(at + 4) : undefined
}

/** Names on the wire are bytes, not text: one character a byte keeps every name intact in both directions. */
export function latin1(bytes: Uint8Array, start: number, end: number): string {
  let text = ''
  for (let at = start; at < end; at++) text += String.fromCharCode(bytes[at]!)
  return text
}

/** The inverse of `latin1`; the string must not have characters above U+00FF. */
export function latin1Bytes(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length)
  writeLatin1(bytes, 0, text)
  return bytes
}

/** Writes one byte a character at `at`. */
export function writeLatin1(bytes: { [index: number]: number }, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) {
    const byte = text.charCodeAt(i)
    assert(byte < 256, `name has a character outside of Latin-1: ${JSON.stringify(text)}`)
    bytes[at + i] = byte
  }
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

/** A copy of a part. Not `slice`, which does not copy when `bytes` is a Buffer. */
export function copyOf(bytes: Uint8Array, start: number, end: number): Uint8Array {
  return new Uint8Array(bytes.subarray(start, end))
}

/** For messages. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
