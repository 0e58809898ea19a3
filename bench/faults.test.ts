import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseFaults, waiting } from './faults.js'

const LOG = [
  '7@100.000010:postcopy_page_req_add new page req 0x7f0000001000 total 1',
  '7@100.000110:postcopy_page_req_del resolved page req 0x7f0000001000 total 0',
  '7@100.000200:postcopy_page_req_add new page req 0x7f0000002000 total 1',
  '7@100.000250:postcopy_page_req_add new page req 0x7f0000003000 total 2',
  '7@100.000300:postcopy_page_req_del resolved page req 0x7f0000003000 total 1',
  '7@100.000400:postcopy_page_req_del resolved page req 0x7f0000002000 total 0',
  '7@100.000900:postcopy_page_req_add new page req 0x7f0000004000 total 1',
  '',
].join('\n')

test('faults are read from the log of a QEMU; a page that never came is none', () => {
  assert.deepEqual(
    parseFaults(LOG).map(({ askedUs, placedUs }) => placedUs - askedUs),
    [100, 50, 200],
  )
})

test('time in which several pages are waited for counts once, and only up to the end', () => {
  const faults = parseFaults(LOG)
  const all = waiting(faults, 100e6, 101e6)
  assert.deepEqual([all.faults, all.p50, all.blocked], [3, 100, 0.3])
  const first = waiting(faults, 100e6, 100e6 + 230)
  assert.deepEqual([first.faults, first.blocked], [2, 0.13])
  assert.equal(waiting(faults, 0, 1).p50, Number.NaN)
})
