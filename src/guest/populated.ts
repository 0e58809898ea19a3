// Which pages of a guest's RAM may hold anything. Guest thread.

import { HostUnsupportedError } from '../errors.js'
import { createPageScanner } from '../os/pagemap.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { PAGE_BYTES, type RamBlocks } from './ram-blocks.js'

/**
 * The bit of each page that is not zero for sure, numbered through as in `ram`. Memory that has never been touched reads as
 * zeros, and is cheaper to leave out than to read: reading makes each page present.
 */
export function possiblyNonZero(ram: RamBlocks): Bitmap {
  const pages = createBitmap(ram.pageCount)
  let first = 0
  for (const { address, length, backing } of ram.blocks) {
    const all = (): void => pages.setRange(first, first + length / PAGE_BYTES)
    const pageAt = (at: number): number => first + (at - address) / PAGE_BYTES
    // Where it has no memory of its own, a file is seen.
    if (backing !== 'anonymous' && backing !== 'hugetlb') all()
    else scan(address, length, (start, end) => pages.setRange(pageAt(start), pageAt(end)), all)
    first += length / PAGE_BYTES
  }
  return pages
}

function scan(
  address: number,
  length: number,
  onRun: (start: number, end: number) => void,
  unknown: () => void,
): void {
  const scanner = createPageScanner()
  try {
    scanner.scanPopulated(address, length, (start, end, zero) => {
      if (!zero) onRun(start, end)
    })
  } catch (error) {
    if (!(error instanceof HostUnsupportedError)) throw error
    unknown()
  } finally {
    scanner.close()
  }
}
