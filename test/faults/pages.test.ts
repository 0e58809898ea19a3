// The ledger of pages notices what it is there for.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createPageLedger, type PageLedger } from './pages.js'
import type { WireRecord } from './records.js'

const bytes = Buffer.alloc(0)
const page = (index: number): WireRecord => ({ kind: 'page', block: 'a', offset: index * 4096, bytes })
const bitmap = (bits: number): WireRecord => ({
  kind: 'RECV_BITMAP',
  block: 'a',
  bitmap: Uint8Array.of(bits, 0, 0, 0, 0, 0, 0, 0),
  bytes,
})
const eof: WireRecord = { kind: 'eof', bytes }

/** Four pages, of which the first came by precopy; the package has gone through. */
function afterPackage(): PageLedger {
  const ledger = createPageLedger()
  ledger.note({ kind: 'ram-start', blocks: [{ name: 'a', length: 4 * 4096, pageSize: 4096 }], bytes }, true)
  for (const index of [0, 1, 0]) ledger.note(page(index), true)
  const command = {
    name: 'POSTCOPY_RAM_DISCARD',
    block: 'a',
    ranges: [{ start: 4096, length: 3 * 4096 }],
  } as const
  ledger.note({ kind: 'POSTCOPY_RAM_DISCARD', command, bytes }, true)
  ledger.note({ kind: 'package', bytes }, true)
  return ledger
}

function notes(...records: readonly (readonly [WireRecord, boolean])[]): PageLedger {
  const ledger = afterPackage()
  for (const [record, passed] of records) ledger.note(record, passed)
  return ledger
}

test('each page once, also over a recovery in which one was lost on the way', () => {
  notes([page(3), true], [page(1), true], [page(2), true], [eof, true]).assertEachPageOnce()
  const ledger = notes(
    [page(1), true],
    [page(2), true],
    [page(3), false],
    [bitmap(0b0011), true],
    [page(2), true],
    [page(3), true],
    [eof, true],
  )
  ledger.assertEachPageOnce()
  assert.deepEqual([ledger.lost, ledger.sent], [1, 5])
})

for (const [what, message, ...records] of [
  ['twice in a session', /page "a" \+ 4096 was sent twice/, [page(1), true], [page(1), true]],
  ['that came by precopy', /page "a" \+ 0 was sent, and the destination had it/, [page(0), true]],
  [
    'that was placed before the recovery',
    /page "a" \+ 4096 was sent, and the destination had it/,
    [page(1), true],
    [bitmap(0b0011), true],
    [page(1), true],
  ],
  ['that is not there', /does not exist/, [page(4), true]],
  ['that never came', /page "a" \+ 12288 never came/, [page(1), true], [page(2), true], [eof, true]],
  ['that is claimed', /page "a" \+ 8192 never came, and the destination has it/, [bitmap(0b0101), true]],
  ['that was forgotten', /page "a" \+ 0 was there, and the destination has lost it/, [bitmap(0), true]],
  ['and no end', /has not come to its end/, [page(1), true]],
] as [string, RegExp, ...(readonly [WireRecord, boolean])[]][]) {
  test(`a page ${what} is noticed`, () => {
    assert.throws(() => notes(...records).assertEachPageOnce(), message)
  })
}
