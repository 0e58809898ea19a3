// The moment the guest goes over: stop it, tell the destination what it must not keep, hand over the device state.
// Source thread.
//
// What can be done while the guest still runs is done before it is stopped: the destination drops the pages that are
// known to be dirty (early discards; freeing a gigabyte takes it tens of milliseconds), so that downtime does not grow
// with the size of RAM. After the stop only what was written in between is left to discard.

import type { Moment } from '../guest/guest-messages.js'
import { type Bitmap, createBitmap, difference, merge } from '../ram/bitmap.js'
import type { RamBlock } from '../ram/block.js'
import { trace } from '../trace.js'
import { encodeCommand } from '../wire/messages.js'
import { encodePackage } from '../wire/package.js'
import { END_OF_STREAM, encodeVmDescription } from '../wire/sections.js'
import { encodeStopTime } from '../wire/stop-time.js'
import { canonicalise, discardCommands } from './discard.js'
import { type Outgoing, PING } from './outgoing.js'
import { syncDirty } from './precopy.js'
import { pushAhead } from './push.js'
import type { SwitchReason } from './report.js'
import { sendPick } from './send-pages.js'

/** How long the destination may take over the early discards; the guest runs meanwhile. */
const DISCARD_TIMEOUT_MS = 30_000

/** Discards, stop, package. When it returns, the destination has all it needs to run the guest. */
export function switchToPostcopy(o: Outgoing, reason: SwitchReason): Moment {
  trace('postcopy_start', reason)
  const discarded = o.origin.runs ? discardEarly(o) : undefined
  // Where all pages are dirty and discarded anyway, what was written last tells only which are zero: that can wait.
  const later = discarded?.every((bitmap) => bitmap.nextClear(0) === bitmap.length) ?? false

  const { devices, stoppedAt } = o.origin.stopAndSave()
  o.status.step('switchover')
  if (discarded === undefined) {
    for (const [i, dirty] of o.dirty.entries()) discard(o, o.blocks[i]!, dirty) // nothing ran, so nothing was written
    if (o.options.push.on) pushAhead(o)
  } else if (!later) {
    syncDirty(o, false)
    discardFresh(o, discarded)
  }
  o.sender.control(encodeCommand({ name: 'PING', value: PING.discarded }))
  const state = o.origin.saysStopTime ? [encodeStopTime(stoppedAt.realtimeUs), devices] : [devices]
  const content = encodePackage({ devices: Buffer.concat(state), ping: PING.loaded })
  o.sender.control(encodeCommand({ name: 'PACKAGED', length: content.length }))
  o.sender.control(content)
  o.sender.flush()
  // From here on the destination may run the guest: it may have the whole package. With less of it, it cannot.
  o.commit()
  o.sender.control(encodeCommand({ name: 'PING', value: PING.packageSent }))
  o.sender.forgetBlock()
  o.order.rewind()
  o.sender.flush()
  o.status.step('packageSent')
  if (later) syncDirty(o, false)
  return stoppedAt
}

/** Discards the host pages that are dirty and not discarded yet. At least one goes before LISTEN: all RAM is dirty at first. */
function discardFresh(o: Outgoing, discarded: readonly Bitmap[]): void {
  for (const [i, block] of o.blocks.entries()) {
    const dirty = o.dirty[i]!
    canonicalise(block, dirty)
    const fresh = difference(dirty, discarded[i]!)
    merge(discarded[i]!, fresh)
    discard(o, block, fresh)
  }
}

function discard(o: Outgoing, block: RamBlock, pages: Bitmap): void {
  for (const command of discardCommands(block, pages)) {
    o.sender.control(encodeCommand({ name: 'POSTCOPY_RAM_DISCARD', ...command }))
  }
}

/** Returns what the destination has discarded. */
function discardEarly(o: Outgoing): Bitmap[] {
  syncDirty(o, false)
  const discarded = o.blocks.map((block) => createBitmap(block.pages))
  discardFresh(o, discarded)
  o.sender.control(encodeCommand({ name: 'PING', value: PING.earlyDiscards }))
  o.sender.flush()
  o.link.pumpUntil(() => o.pongs.has(PING.earlyDiscards), DISCARD_TIMEOUT_MS, 'discarding pages')
  return discarded
}

/** The other ending: the rest of RAM and the device state with the guest stopped, then nothing more. */
export function completePrecopy(o: Outgoing): Moment {
  const { devices, stoppedAt } = o.origin.stopAndSave()
  o.status.step('switchover')
  syncDirty(o, false)
  o.order.rewind()
  o.sender.endSection(() => {
    while (o.order.nextScanned()) sendPick(o)
  })
  if (o.origin.saysStopTime) o.sender.control(encodeStopTime(stoppedAt.realtimeUs))
  o.sender.control(devices)
  o.sender.control(END_OF_STREAM)
  o.sender.flush()
  // With the last byte of the stream the destination may run the guest; without it, it cannot.
  o.commit()
  const { vmDescription } = o.origin
  if (vmDescription !== undefined) o.sender.control(encodeVmDescription(vmDescription))
  o.sender.flush()
  o.stats.bytesSent = o.sender.bytes()
  return stoppedAt
}
