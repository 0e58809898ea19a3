// The outgoing byte stream: control records and page records, gathered into one iovec that alternates headers with
// guest memory, so that no page is copied in user space. Source thread.
//
// Headers go into a staging area; a page's bytes are named by address where they lie in guest RAM. Nothing leaves before
// `flush` (or before the iovec is full). The socket is never allowed to block us: when it is full, `whenFull` is called,
// which reads the return path until there is room. Both ends blocked on full sockets would be a deadlock.

import assert from 'node:assert/strict'
import { LIMITS } from '../limits.js'
import { AGAIN, trySendVector } from '../os/channel.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { createReferencePipe, type ReferencePipe } from '../os/reference-pipe.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import { blockNameBytes, RAM_END, RAM_FLAGS, writeBlockName, writeRamWord } from '../wire/ram-stream.js'
import { encodeFooter, encodeSectionEnd, encodeSectionPart } from '../wire/sections.js'
import { createStaging, STAGING_BYTES } from './staging.js'

/** Word, name and fill byte of the longest header. */
const HEADER_BYTES_MAX = 8 + 1 + 255 + 1
const SHORT_BYTES_MAX = 32
/** All of the header of a page whose block was named before. */
const WORD_BYTES = 8
const CONTINUED_PAGE = RAM_FLAGS.PAGE | RAM_FLAGS.CONTINUE
const IOVEC_BYTES = 16
const IOVECS = LIMITS.sendPairsMax * 2
/** Fewer pages are copied sooner than passed on by reference. */
const REFERENCE_PAGES_MIN = 16

export interface Sender {
  /** Complete control records: commands, sections, … Closes an open RAM section first. */
  control(bytes: Uint8Array): void
  /** Adjacent pages. @param address of their bytes, which stay as they are until they are sent, or (`lasting`) for good */
  pages(block: RamBlock, page: number, count: number, address: number, lasting: boolean): void
  zeroPage(block: RamBlock, page: number): void
  /** Ends the RAM section that `page` or `zeroPage` opened, if any. */
  closeSection(): void
  /** The last RAM section: SECTION_END with nothing in it, or around the pages `fill` sends. */
  endSection(fill: () => void): void
  /** The EOS word that ends the channel for urgent pages. */
  endChannel(): void
  /** Name the block again at the next page: after the discards, and after a recovery. */
  forgetBlock(): void
  /** Everything to the kernel. */
  flush(): void
  /** Bytes handed over so far, or staged. */
  bytes(): number
  close(): void
}

/**
 * @param ramSectionId undefined on the channel for urgent pages, which has page records and nothing around them
 * @param whenSent told of how many pages that were read for it the memory may change: they are with the kernel, or, when it is closed,
 *   all that are left, Infinity
 */
export function createSender(
  fd: number,
  ramSectionId: number | undefined,
  whenFull: () => void,
  whenSent: (pages: number) => void,
): Sender {
  const staging = createStaging()
  const { bytes: stage, view: stageView } = staging
  const framed = ramSectionId !== undefined
  const table = mapAnonymous(IOVECS * IOVEC_BYTES)
  const iovecView = viewOf(table.address, IOVECS * IOVEC_BYTES)
  const iovec = new Uint32Array(iovecView.buffer, iovecView.byteOffset, IOVECS * 4)
  const names = new Map<RamBlock, Uint8Array>()
  const closing = framed ? Buffer.concat([RAM_END, encodeFooter(ramSectionId)]) : RAM_END
  const opening = framed ? encodeSectionPart(ramSectionId) : new Uint8Array(0)

  let count = 0 // iovec entries in use
  let staged = 0 // staging bytes in use
  let segment = 0 // where the staging bytes begin that are not in the iovec yet
  let named = 0 // pages in it
  let changing = false // some of them may change once they are sent
  let bytes = 0
  let inSection = false
  let lastBlock: RamBlock | undefined
  let references: ReferencePipe | undefined
  let looked = !framed // whether there is one

  function entry(address: number, length: number): void {
    const at = count * 4
    iovec[at] = address
    iovec[at + 1] = Math.floor(address / 0x1_0000_0000)
    iovec[at + 2] = length
    iovec[at + 3] = 0
    count++
  }

  function closeSegment(): void {
    if (staged === segment) return
    entry(staging.address + segment, staged - segment)
    segment = staged
  }

  function flush(): void {
    closeSegment()
    const canRefer = named >= REFERENCE_PAGES_MIN && !changing && staging.mayKeep(staged, bytes)
    const pipe = canRefer ? referencePipe() : undefined
    if (pipe === undefined) {
      sendAllOf(copying)
    } else {
      sendAllOf(pipe.send)
      while (!pipe.drain()) whenFull()
      staging.keep(staged, bytes)
    }
    count = 0
    staged = staging.start()
    segment = staged
    if (named > 0) whenSent(named)
    named = 0
    changing = false
  }

  /** Made when it is first of use: from then on the descriptor does not block. */
  function referencePipe(): ReferencePipe | undefined {
    if (!looked) references = createReferencePipe(fd)
    looked = true
    return references
  }

  const copying = (iovecAddress: number, entries: number): number => trySendVector(fd, iovecAddress, entries)

  function sendAllOf(send: typeof copying): void {
    for (let first = 0; first < count; ) {
      const sent = send(table.address + first * IOVEC_BYTES, count - first)
      if (sent === AGAIN) whenFull()
      else first = consume(first, sent)
    }
  }

  /** Steps over `sent` bytes of the iovec; shortens the entry that went in part. Returns the first entry left. */
  function consume(first: number, sent: number): number {
    let at = first
    let left = sent
    while (left > 0) {
      const length = iovec[at * 4 + 2]!
      if (left < length) {
        const address = iovec[at * 4]! + iovec[at * 4 + 1]! * 0x1_0000_0000 + left
        iovec[at * 4] = address
        iovec[at * 4 + 1] = Math.floor(address / 0x1_0000_0000)
        iovec[at * 4 + 2] = length - left
        return at
      }
      left -= length
      at++
    }
    return at
  }

  function room(stageBytes: number): void {
    // Three entries: a segment before, a page, and a segment after it for what closes the section.
    if (count + 3 > IOVECS || staged + stageBytes > staging.start() + STAGING_BYTES) flush()
  }

  function append(record: Uint8Array): void {
    if (record.length <= SHORT_BYTES_MAX) appendShort(record)
    else appendLong(record)
    bytes += record.length
  }

  /** What stands around every page: cheaper byte by byte than through a view. */
  function appendShort(record: Uint8Array): void {
    room(record.length)
    for (let i = 0; i < record.length; i++) stage[staged + i] = record[i]!
    staged += record.length
  }

  function appendLong(record: Uint8Array): void {
    for (let at = 0; at < record.length; ) {
      room(Math.min(record.length - at, STAGING_BYTES))
      const part = record.subarray(at, at + staging.start() + STAGING_BYTES - staged)
      stage.set(part, staged)
      staged += part.length
      at += part.length
    }
  }

  function header(block: RamBlock, page: number, kind: number): void {
    if (!inSection) {
      append(opening)
      inSection = true
    }
    room(HEADER_BYTES_MAX)
    const named = block !== lastBlock
    const flags = named ? kind : kind | RAM_FLAGS.CONTINUE
    writeRamWord(stageView, staged, page * TARGET_PAGE_BYTES, flags)
    const before = staged
    staged += 8
    if (named) {
      staged = writeBlockName(stage, staged, nameOf(block))
      lastBlock = block
    }
    bytes += staged - before
  }

  /** Pages with a short header that fit into what is left of the iovec, whatever else is to go before it is flushed. */
  function moreFit(): number {
    const stageLeft = staging.start() + STAGING_BYTES - HEADER_BYTES_MAX - staged
    return Math.max(0, Math.floor(Math.min((IOVECS - 3 - count) / 2, stageLeft / WORD_BYTES)))
  }

  /** Pages behind the last one, for which there is room. By far most pages go this way: one loop, on numbers of its own. */
  function pairs(page: number, pages: number, address: number): void {
    let at = count * 4
    let header = staged
    let offset = page * TARGET_PAGE_BYTES
    for (let from = address; from < address + pages * TARGET_PAGE_BYTES; from += TARGET_PAGE_BYTES) {
      writeRamWord(stageView, header, offset, CONTINUED_PAGE)
      const word = staging.address + header
      iovec[at] = word
      iovec[at + 1] = Math.floor(word / 0x1_0000_0000)
      iovec[at + 2] = WORD_BYTES
      iovec[at + 3] = 0
      iovec[at + 4] = from
      iovec[at + 5] = Math.floor(from / 0x1_0000_0000)
      iovec[at + 6] = TARGET_PAGE_BYTES
      iovec[at + 7] = 0
      at += 8
      header += WORD_BYTES
      offset += TARGET_PAGE_BYTES
    }
    count += 2 * pages
    bytes += pages * WORD_BYTES
    staged = header
    segment = header
  }

  function nameOf(block: RamBlock): Uint8Array {
    let name = names.get(block)
    if (name === undefined) {
      name = blockNameBytes(block.name)
      names.set(block, name)
    }
    return name
  }

  function closeSection(): void {
    if (!inSection || !framed) return
    append(closing)
    inSection = false
  }

  return {
    bytes: () => bytes,
    control(record) {
      closeSection()
      append(record)
    },
    pages(block, page, pages, address, lasting) {
      for (let i = 0; i < pages; ) {
        header(block, page + i, RAM_FLAGS.PAGE)
        closeSegment()
        entry(address + i * TARGET_PAGE_BYTES, TARGET_PAGE_BYTES)
        const more = Math.min(pages - i - 1, moreFit())
        pairs(page + i + 1, more, address + (i + 1) * TARGET_PAGE_BYTES)
        named += 1 + more
        if (!lasting) changing = true
        i += 1 + more
      }
      bytes += pages * TARGET_PAGE_BYTES
    },
    zeroPage(block, page) {
      header(block, page, RAM_FLAGS.ZERO)
      stage[staged] = 0
      staged++
      bytes++
    },
    closeSection,
    endSection(fill) {
      assert(framed, 'the channel for urgent pages has no sections')
      closeSection()
      append(encodeSectionEnd(ramSectionId))
      inSection = true
      fill()
      assert(inSection, 'the last RAM section was closed by what it holds')
      closeSection()
    },
    endChannel: () => append(RAM_END),
    forgetBlock() {
      lastBlock = undefined
    },
    flush,
    close() {
      whenSent(Number.POSITIVE_INFINITY) // nor will one be that a lost connection kept from getting in here
      references?.close()
      staging.close()
      table.unmap()
    },
  }
}
