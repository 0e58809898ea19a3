// Frames: u16 id · u16 length · body, the form of commands and of return-path messages. Pure; any thread.
//
// A table names the messages of one direction; from it come their types, the lengths of their bodies and both ways
// of coding. The length is checked before any of the body is waited for.

import assert from 'node:assert/strict'
import { hex, viewOf } from './bytes.js'
import { type Codec, decodeWhole, type Value } from './codec.js'
import { refuseAt, sliceOf } from './slice.js'

interface Entry {
  readonly id: number
  readonly body: Codec<unknown>
}
export type Table = Readonly<Record<string, Entry>>

/** One of the messages of a table: its name, and the fields of its body. */
export type Message<T extends Table> = {
  [N in keyof T]: { readonly name: N } & Value<T[N]['body']>
}[keyof T]

/** Length of id and length. */
export const FRAME_BYTES = 4

/** What a frame says before its body. */
export interface FrameHeader {
  readonly name: string
  readonly body: Codec<object>
  /** Of the body, bytes. */
  readonly length: number
}

/** Messages by id, and the largest body that is taken. */
export interface FrameKind {
  readonly what: string
  readonly table: Table
  readonly names: ReadonlyMap<number, string>
  readonly bodyBytesMax: number
}

export function frameKind(what: string, table: Table, bodyBytesMax: number): FrameKind {
  return {
    what,
    table,
    bodyBytesMax,
    names: new Map(Object.entries(table).map(([name, { id }]) => [id, name])),
  }
}

/** u16 id · u16 length · body, behind `prefix` bytes that are left zero. */
export function encodeFrame<M extends { readonly name: string }>(
  kind: FrameKind,
  message: M,
  prefix = 0,
): Uint8Array {
  const { id, body } = kind.table[message.name] as unknown as { id: number; body: Codec<object> }
  const length = body.size(message)
  assert(length <= kind.bodyBytesMax, `${message.name} of ${length} bytes is too long`)
  const bytes = new Uint8Array(prefix + FRAME_BYTES + length)
  const view = viewOf(bytes)
  view.setUint16(prefix, id)
  view.setUint16(prefix + 2, length)
  body.write(view, prefix + FRAME_BYTES, message)
  return bytes
}

/**
 * Checks id and length before any of the body is read. `offset`: stream offset of the id.
 * Errors: `ProtocolError` for an unknown id, a length over the bound, another length than the body's fixed one.
 */
export function frameHeader(kind: FrameKind, id: number, length: number, offset: number): FrameHeader {
  const name = kind.names.get(id)
  if (name === undefined) {
    return refuseAt(offset, kind.what, `unknown ${kind.what}`, undefined, hex(id))
  }
  const body = kind.table[name]!.body as unknown as Codec<object>
  const fits = body.fixed === undefined ? length <= kind.bodyBytesMax : length === body.fixed
  if (!fits) {
    const expected = body.fixed === undefined ? `at most ${kind.bodyBytesMax}` : `${body.fixed}`
    refuseAt(offset + 2, name, 'wrong length', expected, `${length}`)
  }
  return { name, body, length }
}

/** Decodes the body that lies in `bytes` at `at`. `offset`: its stream offset. */
export function decodeFrame(
  header: FrameHeader,
  bytes: Uint8Array,
  at: number,
  offset: number,
): { name: string } {
  const { name, body, length } = header
  return { name, ...decodeWhole(body, sliceOf(bytes, at, at + length, offset, name)) }
}
