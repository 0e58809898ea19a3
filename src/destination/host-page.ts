// Puts a host page together from target pages: on hugetlbfs a page can only be placed whole. Destination thread.

import { ProtocolError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { type Mapping, mapAnonymous, memcpy, memset } from '../os/mapping.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'

export interface HostPageAssembler {
  /** Address of as many zeros as the largest host page has. */
  readonly zeros: number
  /**
   * Adds one target page (`source`: address of its bytes, undefined: zero). Returns the address of the whole host page
   * when this was its last piece; it holds until the next `add`.
   * @throws ProtocolError when pieces of two host pages are mixed, or one comes twice.
   */
  add(block: RamBlock, page: number, source: number | undefined, streamOffset: number): number | undefined
  assertEmpty(streamOffset: number): void
  /** Forget a page that is in pieces: it will be sent whole again. */
  reset(): void
  close(): void
}

export function createHostPageAssembler(blocks: readonly RamBlock[]): HostPageAssembler {
  const largest = Math.max(TARGET_PAGE_BYTES, ...blocks.map((block) => block.pageSize))
  if (largest > LIMITS.hostPageBytesMax) {
    throw new ProtocolError('host page too large', {
      offset: 0,
      record: 'ram block list',
      got: `${largest} bytes`,
    })
  }
  const huge = largest > TARGET_PAGE_BYTES
  const temporary: Mapping | undefined = huge ? mapAnonymous(largest) : undefined
  const zeros: Mapping | undefined = huge ? mapAnonymous(largest) : undefined
  const seen = new Uint8Array(largest / TARGET_PAGE_BYTES)
  let block: RamBlock | undefined
  let first = 0
  let count = 0

  function refuse(what: string, page: number, offset: number): never {
    throw new ProtocolError(what, {
      offset,
      record: 'ram page record',
      expected: `the rest of the host page at offset ${first * TARGET_PAGE_BYTES} of "${block!.name}"`,
      got: `offset ${page * TARGET_PAGE_BYTES}`,
    })
  }

  return {
    zeros: zeros?.address ?? 0,
    add(target, page, source, offset) {
      const start = page - (page % target.ratio)
      if (count === 0) {
        block = target
        first = start
      } else if (target !== block || start !== first) {
        refuse('pieces of two host pages are mixed', page, offset)
      }
      const index = page - first
      if (seen[index] === 1) refuse('a piece of a host page came twice', page, offset)
      seen[index] = 1
      const at = temporary!.address + index * TARGET_PAGE_BYTES
      if (source === undefined) memset(at, 0, TARGET_PAGE_BYTES)
      else memcpy(at, source, TARGET_PAGE_BYTES)
      count++
      if (count < target.ratio) return undefined
      count = 0
      seen.fill(0)
      return temporary!.address
    },
    reset() {
      count = 0
      seen.fill(0)
    },
    assertEmpty(offset) {
      if (count !== 0) refuse('the stream ends within a host page', first + count, offset)
    },
    close() {
      temporary?.unmap()
      zeros?.unmap()
    },
  }
}
