// The pages that runs of one image asked for, merged. Pure; any thread.
//
// A page that went ahead of its use was never asked for, so a run says nothing of those that it was given: they stay. What it
// asked for all the same is added, or counted again. Where a page that is asked for brings those near to it, these are never
// asked for, and might be needed as well: they are added, too, as what no record has.

import { LIMITS } from '../limits.js'
import type { DemandRecord } from './recorder.js'

export interface WorkingSet {
  /** Numbers among the pages of all blocks, each once, in the order of their first use. */
  readonly pages: Uint32Array
  /** First use, µs after the guest could run. */
  readonly firstUs: Uint32Array
  /** In how many records the page was asked for; 0: it came along with one that was. */
  readonly seen: Uint16Array
  /** How many records are in it. */
  readonly records: number
}

interface Entry {
  page: number
  firstUs: number
  seen: number
}

const SEEN_MAX = 2 ** 16 - 1

/** Pages from `first` to `end` come along with a page. */
export type ComesAlong = (page: number) => { readonly first: number; readonly end: number }

/** @param along in the run of that record; undefined: each came alone */
export function mergeRecord(
  known: WorkingSet | undefined,
  record: DemandRecord,
  along?: ComesAlong,
): WorkingSet {
  const entries = new Map<number, Entry>()
  for (const [i, page] of (known?.pages ?? []).entries())
    entries.set(page, { page, firstUs: known!.firstUs[i]!, seen: known!.seen[i]! })
  for (const [i, page] of record.pages.entries()) {
    const atUs = record.atUs[i]!
    const entry = entries.get(page)
    if (entry === undefined) entries.set(page, { page, firstUs: atUs, seen: 1 })
    else {
      entry.firstUs = Math.min(entry.firstUs, atUs)
      entry.seen = Math.min(entry.seen + 1, SEEN_MAX)
    }
    if (entry !== undefined || along === undefined) continue
    const { first, end } = along(page)
    for (let near = first; near < end; near++)
      if (!entries.has(near)) entries.set(near, { page: near, firstUs: atUs, seen: 0 })
  }
  return columns(bounded([...entries.values()]), (known?.records ?? 0) + 1)
}

/** Pages that are asked for seldom and late are the first to go. */
function bounded(entries: Entry[]): Entry[] {
  if (entries.length <= LIMITS.workingSetPagesMax) return entries
  return entries.sort((a, b) => b.seen - a.seen || a.firstUs - b.firstUs).slice(0, LIMITS.workingSetPagesMax)
}

function columns(entries: Entry[], records: number): WorkingSet {
  entries.sort((a, b) => a.firstUs - b.firstUs) // stable: of one moment, in the order that they came in
  return {
    pages: Uint32Array.from(entries, ({ page }) => page),
    firstUs: Uint32Array.from(entries, ({ firstUs }) => firstUs),
    seen: Uint16Array.from(entries, ({ seen }) => seen),
    records,
  }
}
