// Wire fixtures: annotated hex files, and ways to feed them. For tests.

import { readFileSync } from 'node:fs'
import { createStreamReader, type StreamReader } from '../../src/wire/reader.js'

/** Bytes of `test/wire/<name>.hex`: hex digits, "text", COUNT*byte; comments behind `#`. */
export function fixture(name: string): Uint8Array {
  // This module runs from dist/test/wire; the hex files stay where they are.
  const source = readFileSync(new URL(`../../../test/wire/${name}.hex`, import.meta.url), 'latin1')
  return fromHex(source)
}

/** The same notation as a string. */
export function fromHex(source: string): Uint8Array {
  const bytes: number[] = []
  // The text before the comment, so that a `#` ends the line.
  const tokens = source
    .replaceAll(/#.*$/gm, '')
    .matchAll(/"([^"]*)"|(\d+)\*([0-9a-f]{2})\b|([0-9a-f]{2})+\b|\S+/g)
  for (const [token, text, count, byte] of tokens) {
    if (text !== undefined) bytes.push(...Buffer.from(text, 'latin1'))
    else if (count !== undefined) bytes.push(...new Array(Number(count)).fill(Number.parseInt(byte!, 16)))
    else if (/^([0-9a-f]{2})+$/.test(token)) bytes.push(...Buffer.from(token, 'hex'))
    else throw new Error(`not hex: ${token}`)
  }
  return Uint8Array.from(bytes)
}

/** A reader that gets `chunk` bytes at a time. */
export function chunkedReader(bytes: Uint8Array, chunk = bytes.length, bufferBytes = 65_536): StreamReader {
  const buffer = new Uint8Array(bufferBytes)
  let sent = 0
  return createStreamReader(buffer, (at, max) => {
    const part = bytes.subarray(sent, sent + Math.min(chunk, max))
    buffer.set(part, at)
    sent += part.length
    return part.length
  })
}

/** A small generator of repeatable numbers (mulberry32): integers in 0..end-1. */
export function seeded(seed: number): (end: number) => number {
  let state = seed >>> 0
  return (end) => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % end
  }
}
