// Pages that a postcopy source took back and has to send again. Runs on the thread that reads the stream. Nobody else
// notices a page that the source forgets: it would silently be zeros.

import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Command } from '../wire/messages.js'
import { refuseAt } from '../wire/slice.js'
import type { PageSink, RamBlockShape } from './load-ram.js'
import type { ImageWriter } from './writer.js'

export interface DiscardedPages {
  discard(block: number, page: number, pages: number): void
  arrived(block: number, page: number): void
  /** @throws ProtocolError when a page has not come again. */
  assertNone(offset: number): void
}

export function trackDiscarded(blocks: readonly RamBlockShape[]): DiscardedPages {
  const absent: readonly Bitmap[] = blocks.map(({ length }) => createBitmap(length / TARGET_PAGE_BYTES))
  return {
    discard: (block, page, pages) => absent[block]!.setRange(page, page + pages),
    arrived: (block, page) => absent[block]!.clear(page),
    assertNone(offset) {
      for (const [index, { name }] of blocks.entries()) {
        const page = absent[index]!.nextSet(0)
        if (page < 0) continue
        const what = `the stream ended, but ${absent[index]!.count()} pages of RAM block "${name}" never came`
        refuseAt(offset, 'end of stream', what, undefined, `first at offset ${page * TARGET_PAGE_BYTES}`)
      }
    },
  }
}

type Discard = Extract<Command, { name: 'POSTCOPY_RAM_DISCARD' }>

/** @throws ProtocolError for pages that do not exist. */
export function discardRanges(
  writer: ImageWriter,
  discarded: DiscardedPages,
  { name, block: blockName, ranges }: Discard,
  offset: number,
): void {
  const block = writer.blocks.findIndex((each) => each.name === blockName)
  if (block < 0) refuseAt(offset, name, 'discard in a RAM block that does not exist', undefined, blockName)
  const { length: blockBytes } = writer.blocks[block]!
  for (const { start, length } of ranges) {
    const whole = start % TARGET_PAGE_BYTES === 0 && length % TARGET_PAGE_BYTES === 0
    if (!whole || start + length > blockBytes)
      refuseAt(
        offset,
        name,
        `bad range in block ${blockName}`,
        `within ${blockBytes}`,
        `${start} + ${length}`,
      )
    writer.zeroRun(block, start / TARGET_PAGE_BYTES, length / TARGET_PAGE_BYTES)
    discarded.discard(block, start / TARGET_PAGE_BYTES, length / TARGET_PAGE_BYTES)
  }
}

/** The same sink, which also tells of every page that comes. */
export function noticeArrival(sink: PageSink, arrived: (block: number, page: number) => void): PageSink {
  return {
    page(block, page, bytes, at) {
      arrived(block, page)
      sink.page(block, page, bytes, at)
    },
    fill(block, page, byte) {
      arrived(block, page)
      sink.fill(block, page, byte)
    },
    delta(block, page, delta, offset) {
      arrived(block, page)
      sink.delta(block, page, delta, offset)
    },
    compressed(block, page, data, offset) {
      arrived(block, page)
      sink.compressed(block, page, data, offset)
    },
  }
}
