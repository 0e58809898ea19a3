// Memory in which a sender puts the headers together. Source thread.
//
// Where a socket takes bytes by reference, they may not be changed before the peer has read them, and no call tells when that
// is. But a socket holds no more than its send buffer: once so much more has gone into it, what was before is read. So the
// memory has two halves, and when one is full the other is used again only if enough was sent since it was left.

import { mapAnonymous, viewOf } from '../os/mapping.js'

/** What one sending may need. */
export const STAGING_BYTES = 256 * 1024
const HALF_BYTES = 4 * STAGING_BYTES
/** Far more than a socket and a pipe hold; see `REFERENCE_SEND_BYTES_MAX`. */
const BEHIND_BYTES = 32 * 1024 * 1024

export interface Staging {
  readonly address: number
  readonly bytes: Uint8Array
  readonly view: DataView
  /** STAGING_BYTES from here on are free. */
  start(): number
  /** Whether `keep` would find other memory. @param sent all bytes that were sent or are about to be */
  mayKeep(end: number, sent: number): boolean
  /** What is before `end` stays as it is. */
  keep(end: number, sent: number): void
  close(): void
}

export function createStaging(): Staging {
  const memory = mapAnonymous(2 * HALF_BYTES, { noReserve: true })
  const bytes = viewOf(memory.address, memory.length)
  /** What had been sent when each half was left. */
  const leftAt = [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY]
  let half = 0
  let start = 0
  const isFull = (end: number): boolean => end + STAGING_BYTES > (half + 1) * HALF_BYTES
  const mayKeep = (end: number, sent: number): boolean =>
    !isFull(end) || sent - leftAt[1 - half]! >= BEHIND_BYTES

  return {
    address: memory.address,
    bytes,
    view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length),
    start: () => start,
    mayKeep,
    keep(end, sent) {
      start = end
      if (!isFull(end)) return
      leftAt[half] = sent
      half = 1 - half
      start = half * HALF_BYTES
    },
    close: () => memory.unmap(),
  }
}
