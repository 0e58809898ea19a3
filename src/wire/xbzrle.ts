// XBZRLE, the delta encoding of pages in precopy. Pure; any thread.
//
// A delta is a list of pairs: how many bytes stay as they are, how many bytes follow that replace the old ones.
// Lengths are ULEB128 of at most two bytes. What the delta does not reach stays as it is.
// Source: QEMU migration/xbzrle.c, `xbzrle_decode_buffer`.

import { ProtocolError } from '../errors.js'

/**
 * Applies `delta` to the content that `page` had when the sender sent it last. `offset`: stream offset of the delta.
 * Errors: `ProtocolError`; the page may be changed in part by then.
 */
export function applyXbzrle(page: Uint8Array, delta: Uint8Array, offset = 0): void {
  let input = 0
  let output = 0

  function fail(what: string): never {
    throw new ProtocolError(what, { offset: offset + input, record: 'page delta' })
  }

  function length(): number {
    // The data after the last length is never empty, so two bytes are always there in a sound delta.
    if (input + 2 > delta.length) fail('delta ends inside a length')
    const first = delta[input++]!
    if (first < 0x80) return first
    const second = delta[input++]!
    if (second >= 0x80) fail('length of more than two bytes')
    return (second << 7) | (first & 0x7f)
  }

  while (input < delta.length) {
    const kept = length()
    if (kept === 0 && output !== 0) fail('nothing kept between two replacements')
    output += kept
    if (output > page.length) fail('delta leaves the page')
    const replaced = length()
    if (replaced === 0) fail('empty replacement')
    if (output + replaced > page.length) fail('delta leaves the page')
    if (input + replaced > delta.length) fail('delta ends inside a replacement')
    page.set(delta.subarray(input, input + replaced), output)
    input += replaced
    output += replaced
  }
}
