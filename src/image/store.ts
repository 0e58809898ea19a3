// Where staged pages go: into the file, past the page cache (direct-store.ts) or through it. Used by the stage, on the thread that
// writes the image.

import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { writeExactly } from './file.js'

export interface Store {
  /** Pages in one write at most; it stands at a multiple of so many. */
  readonly slotPages: number
  /** Where the next pages are to be put. Another one after each `put`. */
  readonly slot: Uint8Array
  /** Writes the first `bytes` of the slot to `offset`. @throws SystemError of this write or of an earlier one */
  put(offset: number, bytes: number): void
  /** What was put from `start` to `end` is in the file when it returns. @throws SystemError of any write */
  settle(start: number, end: number): void
  /** Nothing is written any more when it returns. Idempotent. */
  close(): void
}

/**
 * Pages in one write: the kernel keeps them in one large folio then. More at once is much slower where a virtual machine gives memory back to
 * its host, of which still larger folios are made (1 MiB a write: six times the system time).
 */
const SLOT_PAGES = 128

/** Through the page cache. */
export function createCachedStore(fd: number, path: string): Store {
  const slot = new Uint8Array(SLOT_PAGES * TARGET_PAGE_BYTES)
  return {
    slotPages: SLOT_PAGES,
    slot,
    put: (offset, bytes) => writeExactly(fd, path, slot.subarray(0, bytes), offset),
    settle() {},
    close() {},
  }
}
