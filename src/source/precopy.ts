// Precopy: send all of RAM while the guest runs, then what it has written meanwhile, and so on, until the rest is small,
// or it shows that it never will be, or the switch is ordered. Source thread.

import { monotonicMs } from '../os/clock.js'
import { merge } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { trace } from '../trace.js'
import { judge, type PassResult } from './convergence.js'
import { type Outgoing, remainingBytes } from './outgoing.js'
import type { SwitchReason } from './report.js'
import { sendPick } from './send-pages.js'

export type PrecopyOutcome =
  | { readonly finish: 'precopy' }
  | { readonly finish: 'postcopy'; readonly reason: SwitchReason }

/** Pages between two looks at the return path and the orders. */
const PAGES_PER_LOOK = 64

export function runPrecopy(o: Outgoing): PrecopyOutcome {
  const sent = o.blocks.filter(({ name }) => !o.options.skip.includes(name))
  for (const block of sent) o.dirty[block.index]!.setRange(0, block.pages)
  o.origin.begin(o.populated)
  if (!o.origin.pushZeroPages) {
    // Only postcopy can leave zero pages out: it begins with RAM that is empty.
    const pages = o.options.postcopy === 'never' ? o.dirty : o.populated
    for (const { index } of sent) merge(o.background[index]!, pages[index]!)
  }
  if (o.options.postcopy === 'now') return { finish: 'postcopy', reason: 'at once' }
  const passes: PassResult[] = []
  for (;;) {
    passes.push(runPass(o))
    if (o.switchWanted) return { finish: 'postcopy', reason: 'ordered' }
    const verdict = judge(passes, o.options.downtimeLimitMs)
    if (verdict === 'converged') return { finish: 'precopy' }
    if (verdict === 'diverges' && o.options.postcopy === 'auto') {
      return { finish: 'postcopy', reason: 'precopy diverges' }
    }
  }
}

/**
 * Sends every dirty page once, then asks the kernel which have been written since. It is asked twice: before the pass with
 * new protection, behind it without, so that a guest that goes over now is not slowed down once more.
 */
function runPass(o: Outgoing): PassResult {
  syncDirty(o, true)
  const startMs = monotonicMs()
  const startBytes = o.sender.bytes()
  o.stats.passes++
  o.order.rewind()
  for (let pages = 0; !o.switchWanted && o.order.nextScanned(PAGES_PER_LOOK); ) {
    sendPick(o)
    pages += o.order.pick.pages
    if (pages < PAGES_PER_LOOK) continue
    look(o)
    pages = 0
  }
  o.sender.closeSection()
  o.sender.flush()
  const sentBytes = o.sender.bytes() - startBytes
  const tookMs = monotonicMs() - startMs
  syncDirty(o, false)
  const dirtyBytes = remainingBytes(o)
  Object.assign(o.stats, {
    dirtyBytesLastPass: dirtyBytes,
    bytesSent: o.sender.bytes(),
    bytesRemaining: dirtyBytes,
    bytesPerSecond: (sentBytes / Math.max(tookMs, 0.001)) * 1000,
  })
  trace('migration_pass', o.stats.passes, dirtyBytes / TARGET_PAGE_BYTES)
  return { sentBytes, tookMs, dirtyBytes }
}

function look(o: Outgoing): void {
  o.link.pump(0)
  o.stats.bytesSent = o.sender.bytes()
  for (let wait = o.pacer.waitMs(monotonicMs()); wait > 0; wait = o.pacer.waitMs(monotonicMs())) {
    o.sender.flush() // what is charged is sent, or a slow limit would hold it back for nothing
    if (o.switchWanted) return
    o.link.pump(wait)
  }
}

/** What the guest has written becomes dirty again, and is known to be populated. As `Origin.collectWritten`. */
export function syncDirty(o: Outgoing, again: boolean): void {
  o.origin.collectWritten(o.written, again)
  for (const [i, written] of o.written.entries()) {
    merge(o.dirty[i]!, written)
    merge(o.populated[i]!, written)
    written.clearRange(0, written.length)
  }
}
