// RAM blocks as the engine uses them: a guest's blocks, numbered, with page arithmetic. Any thread.

import { UsageError } from '../errors.js'
import { LIMITS } from '../limits.js'

/** x86's page, and the unit of the wire. */
export const TARGET_PAGE_BYTES = 4096
/** Target pages that go together where all of them are to go: an aligned group. */
export const RUN_PAGES = 256

export interface RamBlock {
  /** Position in the list; the number by which threads speak of the block. */
  readonly index: number
  /** idstr. */
  readonly name: string
  /** Bytes. */
  readonly length: number
  /** Host page size, bytes. */
  readonly pageSize: number
  readonly address: number
  /** Target pages in the block. */
  readonly pages: number
  /** Target pages in a host page: 1 for ordinary RAM, 512 for 2 MiB pages. */
  readonly ratio: number
  /** Memory that was never touched reads as zeros. Not so in a mapping of a file, which may hold something. */
  readonly zeroWhereAbsent: boolean
  /** Number of the block's first target page among all blocks' pages: for one flat page map. */
  readonly firstPage: number
}

interface BlockLike {
  readonly name: string
  readonly length: number
  readonly pageSize: number
  readonly address: number
  readonly backing?: 'anonymous' | 'hugetlb' | 'memfd-private' | 'shared'
}

/** @throws UsageError when the blocks of a guest cannot be migrated: unaligned, nameless, twice the same name… */
export function numberBlocks(blocks: readonly BlockLike[]): RamBlock[] {
  let firstPage = 0
  const names = new Set<string>()
  if (blocks.length > LIMITS.ramBlocksMax)
    throw new UsageError(`a guest may have ${LIMITS.ramBlocksMax} RAM blocks`)
  return blocks.map(({ name, length, pageSize, address, backing = 'anonymous' }, index) => {
    const where = `RAM block "${name}"`
    if (name === '' || Buffer.byteLength(name) > 255)
      throw new UsageError(`${where}: the name must have 1 to 255 bytes`)
    if (names.has(name)) throw new UsageError(`${where} exists twice`)
    names.add(name)
    if (pageSize < TARGET_PAGE_BYTES || !Number.isInteger(Math.log2(pageSize)))
      throw new UsageError(
        `${where}: page size ${pageSize} is no power of two of at least ${TARGET_PAGE_BYTES}`,
      )
    if (length <= 0 || length % pageSize !== 0)
      throw new UsageError(`${where}: length ${length} is not a multiple of its page size ${pageSize}`)
    if (address % pageSize !== 0)
      throw new UsageError(`${where}: address is not aligned to its page size ${pageSize}`)
    const pages = length / TARGET_PAGE_BYTES
    const block = {
      index,
      name,
      length,
      pageSize,
      address,
      pages,
      ratio: pageSize / TARGET_PAGE_BYTES,
      zeroWhereAbsent: backing === 'anonymous' || backing === 'hugetlb',
      firstPage,
    }
    firstPage += pages
    return block
  })
}

export const totalPages = (blocks: readonly RamBlock[]): number =>
  blocks.reduce((sum, block) => sum + block.pages, 0)

/** The block in which the page with this number among the pages of all blocks lies. */
export const blockOfPage = (blocks: readonly RamBlock[], page: number): RamBlock =>
  blocks.findLast(({ firstPage }) => firstPage <= page)!

/** Bitwise OR of the host page sizes, as POSTCOPY_ADVISE announces it. Sizes are powers of two below 2^31. */
export const pageSizeSummary = (blocks: readonly { pageSize: number }[]): number =>
  blocks.reduce((summary, block) => summary | block.pageSize, 0)

/** The block that holds a host address, or undefined. Few blocks, so a plain search. */
export function blockAt(blocks: readonly RamBlock[], address: number): RamBlock | undefined {
  for (const block of blocks) {
    if (address >= block.address && address < block.address + block.length) return block
  }
  return undefined
}
