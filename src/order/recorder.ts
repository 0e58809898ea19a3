// Which pages a guest asks for, when, and in which order: what the next run of the same image begins with. Pure; source
// thread. A page counts once, when it is asked for first. The record ends by itself.

import { LIMITS } from '../limits.js'
import { createBitmap } from '../ram/bitmap.js'

/** Pages by their numbers among those of all blocks, in the order in which they were asked for. */
export interface DemandRecord {
  readonly pages: Uint32Array
  /** When, µs after the guest could run; 2^32 - 1 is that or later. */
  readonly atUs: Uint32Array
  /** Of these, pages that earlier runs had asked for, too: they came too late, or were on their way. */
  readonly late: number
  /** Pages that earlier runs had asked for, and which were sent without being asked for. */
  readonly ahead: number
  /** How fast the destination took what was pushed; 0 when nothing was. */
  readonly bytesPerSecond: number
  /** When the device state was loaded, by the destination's word, ms after the guest could run; 0 when that is not known. */
  readonly loadedMs: number
  /** The guest had asked for all that it was going to ask for; otherwise the run was cut short. */
  readonly settled: boolean
}

export interface RecordLimits {
  /** It ends when no new page has been asked for in this time, ms. */
  readonly settleMs: number
  /** Or after this time, ms. */
  readonly maxMs: number
}

export interface RecorderParts extends RecordLimits {
  /** Pages of all blocks. */
  readonly totalPages: number
  /** Pages that earlier runs asked for. */
  readonly known: Uint32Array
  /** Has it gone out? */
  isSent(page: number): boolean
  /** How fast the destination has taken what was pushed. */
  bytesPerSecond(): number
  /** When the device state was loaded, ms; undefined when that is not known. */
  loadedAtMs(): number | undefined
  /** Called once, with the record, if the guest has run. */
  done(record: DemandRecord): void
}

export interface Recorder {
  /** The guest may run from now on. */
  begin(nowMs: number): void
  /** These pages have been asked for. */
  note(page: number, pages: number, nowMs: number): void
  /** Ends the record if it has settled. Returns how long until it may have, ms; -1 when it has ended or not begun. */
  settle(nowMs: number): number
  /** Nothing more will be seen. `settled`: because all is there; not when the guest has gone. */
  end(settled: boolean): void
}

const US_MAX = 2 ** 32 - 1

export function createRecorder(parts: RecorderParts): Recorder {
  const { totalPages, known, settleMs, maxMs } = parts
  const capacity = Math.min(totalPages, LIMITS.workingSetPagesMax)
  // Memory that is not touched costs nothing.
  const pages = new Uint32Array(capacity)
  const atUs = new Uint32Array(capacity)
  const seen = createBitmap(totalPages)
  let count = 0
  let startMs = -1
  let lastMs = 0
  let ended = false

  function end(settled: boolean): void {
    if (ended || startMs < 0) return
    ended = true
    let [late, ahead] = [0, 0]
    for (const page of known) {
      if (seen.get(page)) late++
      else if (parts.isSent(page)) ahead++
    }
    const [asked, when] = [pages.slice(0, count), atUs.slice(0, count)]
    const loadedMs = Math.max(0, (parts.loadedAtMs() ?? startMs) - startMs)
    const bytesPerSecond = parts.bytesPerSecond()
    parts.done({ pages: asked, atUs: when, late, ahead, bytesPerSecond, loadedMs, settled })
  }

  function settle(nowMs: number): number {
    if (ended || startMs < 0) return -1
    const leftMs = Math.min(lastMs + settleMs, startMs + maxMs) - nowMs
    if (leftMs > 0) return Math.ceil(leftMs)
    end(true)
    return -1
  }

  return {
    begin(nowMs) {
      if (startMs >= 0) return
      startMs = nowMs
      lastMs = nowMs
    },
    note(page, many, nowMs) {
      if (settle(nowMs) < 0) return
      for (let p = page; p < page + many; p++) {
        if (seen.get(p)) continue
        if (count === capacity) return end(true)
        seen.set(p)
        pages[count] = p
        atUs[count] = Math.min(US_MAX, (nowMs - startMs) * 1000)
        count++
        lastMs = nowMs
      }
    },
    settle,
    end,
  }
}
