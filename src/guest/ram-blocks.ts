// RAM for guests that are not a VM: blocks mapped as asked for, and read or written as 4 KiB pages. Guest thread.

import { GuestError, UsageError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { closeFd } from '../os/channel.js'
import { createMemfd, type Mapping, mapAnonymous, mapFile, viewOf } from '../os/mapping.js'
import type { GuestRamBlock, RamBlockShape } from './guest.js'

export const PAGE_BYTES = 4096
export const PAGE_WORDS = PAGE_BYTES / 4
/** A view of more than 4 GiB cannot be had, and accesses above 2 GiB in one are slower. */
const VIEW_BYTES = 1024 * 1024 * 1024

export interface BlockSpec {
  readonly name: string
  /** Bytes; a multiple of `pageSize`. */
  readonly length: number
  /** Host page size; 4096 unless given. */
  readonly pageSize?: number
  /** `hugetlb` unless the page size is 4096. */
  readonly backing?: GuestRamBlock['backing']
}

export interface RamBlocks {
  readonly blocks: readonly GuestRamBlock[]
  /** 4 KiB pages of all blocks, numbered through in the blocks' order. */
  readonly pageCount: number
  /**
   * Where a page lies: the view to use, and through `wordOf` the index of the page's first 32-bit word in it.
   * Neither allocates nor touches the page.
   */
  viewOfPage(page: number): Int32Array
  wordOf(page: number): number
  addressOf(page: number): number
  /** `block + offset`, for messages. */
  describePage(page: number): string
  unmap(): void
}

/** Throws UsageError on a shape that cannot be; HostUnsupportedError without enough huge pages. */
export function mapBlocks(specs: readonly BlockSpec[]): RamBlocks {
  checkSpecs(specs)
  const mappings: Mapping[] = []
  try {
    for (const spec of specs) mappings.push(mapBlock(spec))
  } catch (error) {
    for (const mapping of mappings) mapping.unmap()
    throw error
  }
  const blocks = specs.map((spec, i): GuestRamBlock => {
    const { name, length } = spec
    return {
      name,
      length,
      pageSize: pageSizeOf(spec),
      address: mappings[i]!.address,
      backing: backingOf(spec),
    }
  })
  return { blocks, ...pagesOf(blocks), unmap: () => mappings.forEach((mapping) => void mapping.unmap()) }
}

/** Options for the blocks of an incoming guest. */
export function specsOf(shapes: readonly RamBlockShape[]): BlockSpec[] {
  return shapes.map(({ name, length, pageSize }) => ({ name, length, pageSize }))
}

function pageSizeOf(spec: BlockSpec): number {
  return spec.pageSize ?? PAGE_BYTES
}

function backingOf(spec: BlockSpec): GuestRamBlock['backing'] {
  return spec.backing ?? (pageSizeOf(spec) === PAGE_BYTES ? 'anonymous' : 'hugetlb')
}

function checkSpecs(specs: readonly BlockSpec[]): void {
  const names = new Set(specs.map((spec) => spec.name))
  const total = specs.reduce((sum, spec) => sum + spec.length, 0)
  if (specs.length === 0 || specs.length > LIMITS.ramBlocksMax || names.size !== specs.length) {
    throw new UsageError(`a guest has 1 to ${LIMITS.ramBlocksMax} RAM blocks, each of another name`)
  }
  if (!(total <= LIMITS.ramBytesMax)) throw new UsageError(`${total} bytes of RAM are too much`)
  for (const spec of specs) {
    const { name, length } = spec
    if (!Number.isSafeInteger(length) || length <= 0 || length % pageSizeOf(spec) !== 0) {
      throw new UsageError(`RAM block "${name}": ${length} bytes are not whole pages of ${pageSizeOf(spec)}`)
    }
    if (backingOf(spec) !== 'hugetlb' && pageSizeOf(spec) !== PAGE_BYTES) {
      throw new UsageError(`RAM block "${name}": huge pages need the backing "hugetlb"`)
    }
  }
}

function mapBlock(spec: BlockSpec): Mapping {
  const { name, length } = spec
  switch (backingOf(spec)) {
    case 'anonymous':
      return mapAnonymous(length, { noReserve: true })
    case 'hugetlb':
      return mapAnonymous(length, { pageSize: pageSizeOf(spec) })
    default: {
      const fd = createMemfd(name, length)
      try {
        return mapFile(fd, length, { shared: spec.backing === 'shared' })
      } finally {
        closeFd(fd)
      }
    }
  }
}

function pagesOf(blocks: readonly GuestRamBlock[]): Omit<RamBlocks, 'blocks' | 'unmap'> {
  const views: Int32Array[] = []
  /** Of each view, its first page, and that page's address; views follow each other in page order. */
  const firstPages: number[] = []
  const addresses: number[] = []
  let pageCount = 0
  for (const { address, length } of blocks) {
    for (let offset = 0; offset < length; offset += VIEW_BYTES) {
      const bytes = viewOf(address + offset, Math.min(VIEW_BYTES, length - offset))
      views.push(new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4))
      firstPages.push(pageCount)
      addresses.push(address + offset)
      pageCount += bytes.length / PAGE_BYTES
    }
  }

  function indexOf(page: number): number {
    if (!(page >= 0 && page < pageCount)) throw new GuestError(`no page ${page}`)
    let low = 0
    let high = firstPages.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (firstPages[middle]! <= page) low = middle
      else high = middle - 1
    }
    return low
  }

  return {
    pageCount,
    viewOfPage: (page) => views[indexOf(page)]!,
    wordOf: (page) => (page - firstPages[indexOf(page)]!) * PAGE_WORDS,
    addressOf(page) {
      const index = indexOf(page)
      return addresses[index]! + (page - firstPages[index]!) * PAGE_BYTES
    },
    describePage(page) {
      let first = 0
      for (const { name, length } of blocks) {
        const pages = length / PAGE_BYTES
        if (page < first + pages) return `"${name}" + 0x${((page - first) * PAGE_BYTES).toString(16)}`
        first += pages
      }
      return `page ${page}`
    },
  }
}

/** For page orders that reach every page: their step width has no divisor in common with the number of pages. */
export function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b)
}
