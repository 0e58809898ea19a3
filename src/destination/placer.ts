// Puts pages into guest RAM, atomically where the guest may be looking. Destination thread; nobody else writes guest RAM while
// it is being received.
//
// RAM is registered with userfaultfd from the start, so there are two ways a page gets in:
//   absent page:   UFFDIO_COPY / UFFDIO_ZEROPAGE, whole host pages, straight from the receive buffer;
//   present page:  (precopy only: the source sends a page again) a plain copy over it; the guest does not run yet.
// Neighbouring pages are joined into one placement. A joined run points into the receive buffer, so it must be flushed
// before the buffer is refilled; `load.ts` sees to that.

import assert from 'node:assert/strict'
import { GuestError, ProtocolError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { monotonicUs } from '../os/clock.js'
import { memcpy, memset } from '../os/mapping.js'
import { nativeBuffer } from '../os/memory.js'
import type { UserfaultfdOperations } from '../os/userfaultfd.js'
import type { Bitmap } from '../ram/bitmap.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Stats } from '../stats.js'
import { trace, tracing } from '../trace.js'
import { applyXbzrle } from '../wire/xbzrle.js'
import type { Blocktime } from './blocktime.js'
import { createHostPageAssembler } from './host-page.js'
import type { DESTINATION_STATS } from './shared.js'

export interface Placer {
  /** One target page whose bytes are in the receive buffer at `dataAt`. */
  page(block: RamBlock, page: number, dataAt: number, streamOffset: number): void
  zeroPage(block: RamBlock, page: number, streamOffset: number): void
  /** XBZRLE: changes to a page that is there already. Precopy only. */
  delta(block: RamBlock, page: number, delta: Uint8Array, streamOffset: number): void
  /** Place what has been joined so far. */
  flush(): void
  /** From LISTEN on: each page comes once, and host pages come whole. */
  enterPostcopy(): void
  /** There is a second channel: a page that was asked for may come over both of them. What comes later is left out. */
  takeRepeats(): void
  /** Pages of this range are absent again. */
  discarded(block: RamBlock, start: number, end: number): void
  /** The connection is lost: forget what is not placed; it does not count as received, and will be sent again. */
  abandon(): void
  /** @throws ProtocolError when a host page is still in pieces. */
  assertNothingPending(streamOffset: number): void
  close(): void
}

export interface PlacerParts {
  /** The receive buffer: its bytes, and its address. */
  readonly buffer: Uint8Array
  readonly bufferAddress: number
  readonly blocks: readonly RamBlock[]
  readonly received: readonly Bitmap[]
  readonly requested: readonly Bitmap[]
  readonly blocktime: Blocktime
  readonly stats: Stats<(typeof DESTINATION_STATS)[number]>
  /** Absent when the source did not advise postcopy: then RAM is ordinary memory, and every page a plain copy. */
  readonly userfaultfd: UserfaultfdOperations | undefined
}

/** Zero pages joined into one placement: it costs the kernel next to nothing, however long. */
const ZERO_RUN_PAGES_MAX = 65_536

export function createPlacer(parts: PlacerParts): Placer {
  const { buffer, bufferAddress, received, requested, blocktime, stats, userfaultfd } = parts
  let postcopy = false
  let takesRepeats = false
  // The run that is being joined: target pages of one block, their bytes side by side in the buffer (or all zero).
  let runBlock: RamBlock | undefined
  let runPage = 0
  let runPages = 0
  let runAt = 0
  let runZero = false
  const assembler = createHostPageAssembler(parts.blocks)
  // For deltas: a view of each page would stay with koffi for ever, a few hundred bytes of it.
  const scratch = nativeBuffer(TARGET_PAGE_BYTES)

  function duplicate(block: RamBlock, page: number, offset: number): never {
    throw new ProtocolError('a page came twice after the switch', {
      offset,
      record: 'ram page record',
      got: `block "${block.name}", offset ${page * TARGET_PAGE_BYTES}`,
    })
  }

  function flush(): void {
    const block = runBlock
    if (block === undefined) return
    runBlock = undefined
    const address = block.address + runPage * TARGET_PAGE_BYTES
    const length = runPages * TARGET_PAGE_BYTES
    if (runZero) placeZero(block, address, length)
    else place(address, bufferAddress + runAt, length)
    arrived(block, runPage, runPages)
    if (tracing()) {
      trace(
        runZero ? 'postcopy_place_page_zero' : 'postcopy_place_page',
        block.name,
        runPage * TARGET_PAGE_BYTES,
        runPages,
      )
    }
  }

  /** After the pages are there: the bit first, so that a fault that comes now is not asked for, then who waited. */
  function arrived(block: RamBlock, page: number, pages: number): void {
    received[block.index]!.setRange(page, page + pages)
    stats.pagesPlaced += pages
    if (requested[block.index]!.any(page, page + pages))
      blocktime.end(block.firstPage + page, pages, monotonicUs())
  }

  function place(address: number, source: number, length: number): void {
    if (userfaultfd === undefined) memcpy(address, source, length)
    else whole(length, (done) => userfaultfd.copy(address + done, source + done, length - done))
  }

  function placeZero(block: RamBlock, address: number, length: number): void {
    if (userfaultfd === undefined) memset(address, 0, length)
    else if (block.ratio > 1)
      whole(length, (done) => userfaultfd.copy(address + done, assembler.zeros, length - done))
    else whole(length, (done) => userfaultfd.zeropage(address + done, length - done))
  }

  /** Repeats `step` until `length` bytes are placed. */
  function whole(length: number, step: (done: number) => ReturnType<UserfaultfdOperations['copy']>): void {
    for (let done = 0; done < length; ) {
      const result = step(done)
      if (result === 'placed') return
      // Every page is placed by us alone, and only when it is absent: a page that is present already was put there
      // by somebody who must not, and what it holds cannot be trusted.
      if (result === 'already') throw new GuestError('a page of guest RAM was present before it was placed')
      if (result === 'gone') throw new GuestError('guest RAM is no longer registered with userfaultfd')
      done += userfaultfd!.lastBytes
    }
  }

  function join(block: RamBlock, page: number, dataAt: number, zero: boolean): void {
    const next = runBlock === block && runZero === zero && page === runPage + runPages
    if (next && runPages < (zero ? ZERO_RUN_PAGES_MAX : LIMITS.placeRunPagesMax)) {
      if (!zero) buffer.copyWithin(runAt + runPages * TARGET_PAGE_BYTES, dataAt, dataAt + TARGET_PAGE_BYTES)
      runPages++
    } else {
      flush()
      runBlock = block
      runPage = page
      runPages = 1
      runAt = dataAt
      runZero = zero
    }
    // Somebody waits for it: no waiting for neighbours.
    if (postcopy && requested[block.index]!.get(page)) flush()
  }

  /** A page of a block with host pages larger than target pages. */
  function piece(block: RamBlock, page: number, dataAt: number | undefined, offset: number): void {
    if (!postcopy) {
      makePresent(block, page)
      overwrite(block, page, dataAt)
      received[block.index]!.set(page)
      stats.pagesPlaced++
      return
    }
    if (received[block.index]!.get(page)) duplicate(block, page, offset)
    const source = dataAt === undefined ? undefined : bufferAddress + dataAt
    const complete = assembler.add(block, page, source, offset)
    if (complete === undefined) return
    const first = page - (page % block.ratio)
    place(block.address + first * TARGET_PAGE_BYTES, complete, block.pageSize)
    arrived(block, first, block.ratio)
  }

  /** Precopy brings a huge page in pieces: put an empty one there first, then write into it. */
  function makePresent(block: RamBlock, page: number): void {
    if (userfaultfd === undefined) return
    const first = page - (page % block.ratio)
    if (received[block.index]!.any(first, first + block.ratio)) return
    place(block.address + first * TARGET_PAGE_BYTES, assembler.zeros, block.pageSize)
  }

  function overwrite(block: RamBlock, page: number, dataAt: number | undefined): void {
    const address = block.address + page * TARGET_PAGE_BYTES
    if (dataAt === undefined) memset(address, 0, TARGET_PAGE_BYTES)
    else memcpy(address, bufferAddress + dataAt, TARGET_PAGE_BYTES)
  }

  function take(block: RamBlock, page: number, dataAt: number | undefined, offset: number): void {
    if (block.ratio > 1) {
      piece(block, page, dataAt, offset)
      return
    }
    if (runBlock === block && page >= runPage && page < runPage + runPages) flush() // again, before it was placed
    if (received[block.index]!.get(page)) {
      if (postcopy) duplicate(block, page, offset)
      overwrite(block, page, dataAt)
    } else {
      join(block, page, dataAt ?? 0, dataAt === undefined)
    }
  }

  /** The other channel was faster; the guest may have written to the page since. */
  function isRepeat(block: RamBlock, page: number): boolean {
    if (!takesRepeats || block.ratio > 1) return false
    return received[block.index]!.get(page) && requested[block.index]!.get(page)
  }

  return {
    page(block, page, dataAt, streamOffset) {
      if (isRepeat(block, page)) return
      stats.pagesNormal++
      take(block, page, dataAt, streamOffset)
    },
    zeroPage(block, page, streamOffset) {
      if (isRepeat(block, page)) return
      stats.pagesZero++
      take(block, page, undefined, streamOffset)
    },
    delta(block, page, delta, offset) {
      flush()
      if (postcopy || !received[block.index]!.get(page)) {
        const got = `block "${block.name}", offset ${page * TARGET_PAGE_BYTES}`
        throw new ProtocolError('changes to a page that is not there', {
          offset,
          record: 'xbzrle page record',
          got,
        })
      }
      stats.pagesNormal++
      // Only here is guest RAM read: the page is present, and the guest does not run.
      const address = block.address + page * TARGET_PAGE_BYTES
      memcpy(scratch.address, address, TARGET_PAGE_BYTES)
      applyXbzrle(scratch.bytes, delta, offset)
      memcpy(address, scratch.address, TARGET_PAGE_BYTES)
    },
    flush,
    enterPostcopy() {
      flush()
      postcopy = true
    },
    takeRepeats() {
      takesRepeats = true
    },
    discarded(block, start, end) {
      assert(!postcopy && runBlock === undefined, 'discard while pages are being placed')
      received[block.index]!.clearRange(start, end)
    },
    abandon() {
      runBlock = undefined
      assembler.reset()
    },
    assertNothingPending(streamOffset) {
      flush()
      assembler.assertEmpty(streamOffset)
    },
    close: () => assembler.close(),
  }
}
