// Which pages has the guest written? Asynchronous write-protection: the kernel lifts the protection of a page at its
// first write, with no fault message and no thread to serve it, and PAGEMAP_SCAN reports and re-arms in one step.
// Source thread. Documentation/admin-guide/mm/userfaultfd.rst (write protect, async mode), …/mm/pagemap.rst.

import { armWriteTracking, createPageScanner, WRITE_TRACKING_FEATURES } from '../os/pagemap.js'
import { openUserfaultfd } from '../os/userfaultfd.js'
import type { Bitmap } from './bitmap.js'
import { type RamBlock, TARGET_PAGE_BYTES } from './block.js'

export interface DirtyLog {
  /**
   * Sets the bit of each page written since the last call. Atomic for each page: a write is reported by this call or by
   * the next. With `again` false the pages are not re-protected: for the last call, with the guest stopped.
   */
  collect(dirty: readonly Bitmap[], again: boolean): void
  /** Sets the bit of each page that the kernel has memory for; all others read as zero. */
  collectPopulated(populated: readonly Bitmap[]): void
  close(): void
}

/** Arms all blocks; from now on every write counts. */
export function createDirtyLog(blocks: readonly RamBlock[]): DirtyLog {
  const userfaultfd = openUserfaultfd({ features: WRITE_TRACKING_FEATURES })
  const scanner = createPageScanner()
  for (const block of blocks) armWriteTracking(userfaultfd, block.address, block.length)

  function setRun(block: RamBlock, bitmap: Bitmap): (start: number, end: number) => void {
    return (start, end) =>
      bitmap.setRange((start - block.address) / TARGET_PAGE_BYTES, (end - block.address) / TARGET_PAGE_BYTES)
  }

  return {
    collect(dirty, again) {
      for (const block of blocks) {
        scanner.scanWritten(block.address, block.length, setRun(block, dirty[block.index]!), {
          reprotect: again,
        })
      }
    },
    collectPopulated(populated) {
      for (const block of blocks) {
        scanner.scanPopulated(block.address, block.length, setRun(block, populated[block.index]!))
      }
    },
    close() {
      for (const block of blocks) userfaultfd.unregister(block.address, block.length)
      userfaultfd.close()
      scanner.close()
    },
  }
}
