// Where the source's RAM and device state come from: a guest that runs here, or one that is parked in an image.
// Source thread.

import type { StoppedState } from '../guest/guest-messages.js'
import type { GuestRemote } from '../guest/guest-remote.js'
import type { Bitmap } from '../ram/bitmap.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import { createDirtyLog } from '../ram/dirty-log.js'
import { createZeroTest } from '../ram/zero.js'
import { trace } from '../trace.js'

/** Bytes of adjacent pages; one object, filled anew at each call. */
export interface Extent {
  /** 0: they are zero all the same, and nothing was read. */
  address: number
  pages: number
  /** Nobody will change them, not even when this process has ended: the kernel may hand them on by reference. */
  lasting: boolean
}

export interface Origin {
  /** Sets the bit of each page that holds anything: all others are zero. */
  begin(populated: readonly Bitmap[]): void
  /**
   * Sets the bit of each page written since the last call with `again`, which protects all pages anew and so slows the
   * guest down: its next write to each costs a fault in the kernel.
   */
  collectWritten(written: readonly Bitmap[], again: boolean): void
  /**
   * Called just before pages that hold something are sent, over the channel for urgent pages or the other: where their
   * bytes are, which must stay as they are until `release`. At most so many pages of one aligned run; at least one.
   */
  read(block: RamBlock, page: number, most: number, urgent: boolean): Extent
  /** So many of the pages that were read for that channel are sent, or (Infinity) none that is left will be. */
  release(pages: number, urgent: boolean): void
  /** There is a guest that runs here until it is stopped. */
  readonly runs: boolean
  /** What to add to an error, for people: the destination never ran the guest, or it may have. */
  readonly words: { readonly ifKept: string; readonly ifGone: string }
  /** A wait for it lies in the downtime. */
  stopAndSave(): StoppedState
  /** The guest goes on here after all. */
  resume(): void
  /** Pages that are zero need not go in the background: a QEMU destination has zeros where nothing came. */
  readonly pushZeroPages: boolean
  /** Where a record of our own among the device state says when the guest was stopped. */
  readonly saysStopTime: boolean
  /** JSON that a QEMU destination of a precopy waits for behind the end of the stream; ours does not. */
  readonly vmDescription?: Uint8Array
  close(): void
}

export function createLiveOrigin(guest: GuestRemote, blocks: readonly RamBlock[]): Origin {
  trace('postcopy_balloon_hold', true)
  guest.holdBalloon(true) // memory that is given back is not seen by the dirty log
  const dirtyLog = createDirtyLog(blocks)
  // Made beforehand: a new view of much memory can start a garbage collection, which is no business of downtime.
  const zeroTests = blocks.map(createZeroTest)
  const extent: Extent = { address: 0, pages: 0, lasting: false }
  return {
    begin(populated) {
      dirtyLog.collect(populated, false)
      // Where a private mapping of a file has no memory of its own, it shows the file.
      for (const block of blocks) if (!block.zeroWhereAbsent) populated[block.index]!.setRange(0, block.pages)
    },
    collectWritten: (written, again) => dirtyLog.collect(written, again),
    read(block, page, most) {
      const isZero = zeroTests[block.index]!
      const zero = isZero(page)
      extent.address = zero ? 0 : block.address + page * TARGET_PAGE_BYTES
      extent.pages = 1
      while (!zero && extent.pages < most && !isZero(page + extent.pages)) extent.pages++
      return extent
    },
    release() {},
    stopAndSave: () => guest.stopAndSave(),
    resume() {
      guest.resume()
      trace('postcopy_balloon_hold', false)
      guest.holdBalloon(false)
    },
    runs: true,
    words: {
      ifKept: '. The guest runs on here',
      ifGone: ". After the switch the guest was the destination's; it is kept stopped here",
    },
    pushZeroPages: true,
    saysStopTime: true,
    close: () => dirtyLog.close(),
  }
}
