// The discard phase: tell the destination which pages it must not keep. Pure; called by the source thread.
//
// "Dirty" here is everything the destination lacks or has in an old version. Host pages are placed whole, so a host
// page with one dirty target page is dirty altogether (canonical form), and what is discarded is always host pages.

import assert from 'node:assert/strict'
import { LIMITS } from '../limits.js'
import { type Bitmap, eachRun } from '../ram/bitmap.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import { trace } from '../trace.js'

export interface DiscardCommand {
  readonly block: string
  /** Bytes, relative to the block. */
  readonly ranges: readonly { readonly start: number; readonly length: number }[]
}

/** Makes every host page of `dirty` wholly dirty or wholly clean. */
export function canonicalise(block: RamBlock, dirty: Bitmap): void {
  const { ratio, pages } = block
  if (ratio === 1) return
  for (let page = dirty.nextSet(0); page >= 0; ) {
    const start = page - (page % ratio)
    dirty.setRange(start, start + ratio)
    page = start + ratio < pages ? dirty.nextSet(start + ratio) : -1
  }
}

/** One command for each 12 runs of `pages` (which must be canonical); none when nothing is set. */
export function discardCommands(block: RamBlock, pages: Bitmap): DiscardCommand[] {
  const ranges: { start: number; length: number }[] = []
  eachRun(pages, (start, end) => {
    assert(start % block.ratio === 0 && end % block.ratio === 0, 'discard of part of a host page')
    ranges.push({ start: start * TARGET_PAGE_BYTES, length: (end - start) * TARGET_PAGE_BYTES })
    trace('postcopy_discard_send_range', block.name, start, end - start)
  })
  const commands: DiscardCommand[] = []
  for (let at = 0; at < ranges.length; at += LIMITS.discardRangesPerCommand) {
    commands.push({ block: block.name, ranges: ranges.slice(at, at + LIMITS.discardRangesPerCommand) })
  }
  trace('postcopy_discard_send_finish', block.name, ranges.length, commands.length)
  return commands
}
