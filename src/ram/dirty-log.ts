// Which pages has the guest written? Asynchronous write-protection: the kernel lifts the protection of a page at its
// first write, with no fault message and no thread to serve it, and PAGEMAP_SCAN reports and re-arms in one step.
// Source thread. Documentation/admin-guide/mm/userfaultfd.rst (write protect, async mode), …/mm/pagemap.rst.

import { createPageScanner, startWriteTracking, WRITE_TRACKING_FEATURES } from '../os/pagemap.js'
import { openUserfaultfd } from '../os/userfaultfd.js'
import type { Bitmap } from './bitmap.js'
import { type RamBlock, TARGET_PAGE_BYTES } from './block.js'

export interface DirtyLog {
  /**
   * Sets the bit of each page written since the last call with `again`; before one, those of all pages that have memory
   * (all others read as zero). Atomic for each page: a write is reported by this call or by the next. With `again` the
   * pages are protected anew, and the first write to each costs the guest a fault.
   */
  collect(dirty: readonly Bitmap[], again: boolean): void
  close(): void
}

/** From now on every write counts. */
export function createDirtyLog(blocks: readonly RamBlock[]): DirtyLog {
  const userfaultfd = openUserfaultfd({ features: WRITE_TRACKING_FEATURES })
  const scanner = createPageScanner()
  for (const block of blocks) startWriteTracking(userfaultfd, block.address, block.length)

  return {
    collect(dirty, again) {
      for (const block of blocks) {
        const bitmap = dirty[block.index]!
        const page = (address: number): number => (address - block.address) / TARGET_PAGE_BYTES
        const onRun = (start: number, end: number): void => bitmap.setRange(page(start), page(end))
        scanner.scanWritten(block.address, block.length, onRun, { reprotect: again })
      }
    },
    close() {
      for (const block of blocks) userfaultfd.unregister(block.address, block.length)
      userfaultfd.close()
      scanner.close()
    },
  }
}
