// Where codecs read from, and how they refuse what they read. Pure; any thread.

import { ProtocolError } from '../errors.js'
import { viewOf } from './bytes.js'

/** Where decoding reads from: a bounded slice of a buffer, or a stream without a known end (`reader.ts`). */
export interface Slice {
  readonly bytes: Uint8Array
  readonly view: DataView
  /** What is being decoded, for errors. */
  readonly record: string
  /** Bytes left before the end of the slice; `Infinity` for a stream. */
  left(): number
  /** Index in `bytes` of `count` contiguous bytes, which are now consumed. Errors: `ProtocolError` when there are fewer. */
  take(count: number): number
  /** Stream offset of the next byte. */
  streamOffset(): number
}

/** Throws a `ProtocolError` about what begins at stream offset `offset`. */
export function refuseAt(
  offset: number,
  record: string,
  what: string,
  expected?: string,
  got?: string,
): never {
  throw new ProtocolError(what, {
    offset,
    record,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
  })
}

/** Throws a `ProtocolError` about the `bytesBack` bytes that were read last. */
export function refuse(
  slice: Slice,
  bytesBack: number,
  what: string,
  expected?: string,
  got?: string,
): never {
  refuseAt(slice.streamOffset() - bytesBack, slice.record, what, expected, got)
}

/** The bytes from `start` to `end` of `bytes`; `offset` is the stream offset of `start`. */
export function sliceOf(bytes: Uint8Array, start: number, end: number, offset: number, name: string): Slice {
  let at = start
  const slice: Slice = {
    bytes,
    view: viewOf(bytes),
    record: name,
    left: () => end - at,
    streamOffset: () => offset + at - start,
    take(count) {
      if (count > end - at) refuse(slice, 0, 'body too short', `${count} more bytes`, `${end - at}`)
      at += count
      return at - count
    },
  }
  return slice
}
