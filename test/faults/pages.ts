// Which page went over when, from the records alone: that each page is placed once, and no page is forgotten, whatever
// happens to the connections.
//
// What can be said exactly:
//   - After the package, no page is sent twice on the connections of one session (main and preempt), and none that the
//     destination had already.
//   - The bitmap with which a recovery begins says what the destination has placed. All that it had at the start of the
//     session before must be in it, and nothing that never went through.
//   - In the new session only pages outside of the bitmap are sent; at the end of the stream, all of them.
// So at the end the sets of pages placed in each session are disjoint, and together they are RAM: each page was placed
// once. What was lost on the way is what was let through and is not in the next bitmap: a count, not a fault.

import assert from 'node:assert/strict'
import type { WireRecord } from './records.js'

const PAGE_BYTES = 4096
const PAGE_KINDS: ReadonlySet<string> = new Set(['page', 'zero', 'xbzrle', 'compress'])
const VIOLATIONS_MAX = 20

/** One byte a page. */
type PageSet = Map<string, Uint8Array>

export interface PageLedger {
  /** A record has come from its sender; `passed`: and was let through whole, unchanged. */
  note(record: WireRecord, passed: boolean): void
  /** A new main connection. */
  session(): void
  /** Pages let through and lost behind the proxy, of the sessions that were recovered. */
  readonly lost: number
  /** Page records after the package, in all sessions. */
  readonly sent: number
  /**
   * @param mayLack pages that need not come: zeros of a parked VM.
   * @throws what was wrong, and for a stream that has not come to its end.
   */
  assertEachPageOnce(mayLack?: (block: string, page: number) => boolean): void
}

export function createPageLedger(): PageLedger {
  let lengths = new Map<string, number>()
  /** What the destination had when the session began: by precopy, or placed in earlier sessions. */
  let before: PageSet = new Map()
  let seen: PageSet = new Map()
  let passedOn: PageSet = new Map()
  let bitmaps = new Map<string, Uint8Array>()
  let postcopy = false
  let ended = false
  let lost = 0
  let sent = 0
  const violations: string[] = []

  const fresh = (): PageSet =>
    new Map([...lengths].map(([name, length]) => [name, new Uint8Array(length / PAGE_BYTES)]))
  function violation(what: string): void {
    if (violations.length < VIOLATIONS_MAX) violations.push(what)
  }

  function begin(record: WireRecord): void {
    lengths = new Map(record.blocks!.map(({ name, length }) => [name, length]))
    before = fresh()
    seen = fresh()
    passedOn = fresh()
    postcopy = false
    ended = false
    lost = 0
    sent = 0
    violations.length = 0
  }

  function page({ kind, block, offset }: WireRecord, passed: boolean): void {
    const index = offset! / PAGE_BYTES
    const where = `page "${block}" + ${offset}`
    const had = before.get(block ?? '')
    if (had === undefined || index >= had.length) {
      violation(`${where} does not exist`)
      return
    }
    if (!postcopy) {
      if (passed) had[index] = 1
      return
    }
    sent++
    if (kind !== 'page' && kind !== 'zero') violation(`${where} came as ${kind} after the switch`)
    if (had[index] === 1) violation(`${where} was sent, and the destination had it`)
    if (seen.get(block!)![index] === 1) violation(`${where} was sent twice`)
    seen.get(block!)![index] = 1
    if (passed) passedOn.get(block!)![index] = 1
  }

  function discard(record: WireRecord): void {
    if (record.command?.name !== 'POSTCOPY_RAM_DISCARD') return
    const had = before.get(record.command.block)
    for (const { start, length } of record.command.ranges)
      had?.fill(0, start / PAGE_BYTES, (start + length) / PAGE_BYTES)
  }

  /** The destination says what it has; the last of the bitmaps begins the session. */
  function bitmap({ block, bitmap }: WireRecord): void {
    const had = before.get(block!)
    const went = passedOn.get(block!)
    if (had === undefined || went === undefined) {
      violation(`a bitmap of "${block}"`)
      return
    }
    const now = had.map((_, index) => (bitmap![index >> 3]! >> (index & 7)) & 1)
    for (const [index, bit] of now.entries()) {
      const where = `page "${block}" + ${index * PAGE_BYTES}`
      if (bit === 1 && had[index] === 0 && went[index] === 0)
        violation(`${where} never came, and the destination has it`)
      if (bit === 0 && had[index] === 1) violation(`${where} was there, and the destination has lost it`)
      if (bit === 0 && went[index] === 1) lost++
    }
    bitmaps.set(block!, now)
    if (bitmaps.size < lengths.size) return
    before = bitmaps
    bitmaps = new Map()
    seen = fresh()
    passedOn = fresh()
  }

  return {
    note(record, passed) {
      if (record.kind === 'ram-start') begin(record)
      else if (PAGE_KINDS.has(record.kind)) page(record, passed)
      else if (record.kind === 'POSTCOPY_RAM_DISCARD') discard(record)
      else if (record.kind === 'package') postcopy = passed
      else if (record.kind === 'RECV_BITMAP' && record.bitmap !== undefined) bitmap(record)
      else if (record.kind === 'eof') ended = passed
    },
    session() {
      bitmaps = new Map()
    },
    get lost() {
      return lost
    },
    get sent() {
      return sent
    },
    assertEachPageOnce(mayLack = () => false) {
      assert.deepEqual(violations, [])
      assert(lengths.size > 0 && ended, 'the stream has not come to its end')
      if (!postcopy) return
      for (const [name, had] of before) {
        const came = passedOn.get(name)!
        const missing = had.findIndex((bit, index) => bit === 0 && came[index] === 0 && !mayLack(name, index))
        assert.equal(missing, -1, `page "${name}" + ${missing * PAGE_BYTES} never came`)
      }
    },
  }
}
