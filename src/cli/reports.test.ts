import assert from 'node:assert/strict'
import { test } from 'node:test'
import { demoReport, type SideReport } from './reports.js'
import { followPrinted } from './serial.js'
import { demoSummary, migrateSummary, receiveSummary } from './summary.js'

function side(
  role: SideReport['role'],
  text: string,
  progress: number,
  changes: Partial<SideReport> = {},
): SideReport {
  const printed = followPrinted()
  printed.add(Buffer.from(text))
  const there = role === 'destination'
  return {
    ok: true,
    role,
    status: 'completed',
    error: null,
    mode: 'postcopy',
    switchReason: there ? null : 'at once',
    passes: there ? null : 0,
    downtimeMs: there ? 12 : 11,
    totalMs: 900,
    pages: { normal: 100, zero: 20, requested: there ? 55 : 50 },
    faults: there ? 60 : 55,
    faultLatencyUs: there ? { p50: 60, p99: 3600, max: 12_000 } : null,
    blocktimeMs: there ? 200 : null,
    bytes: 410_000,
    ramCheck: there ? { ok: true, detail: 'all pages agree' } : null,
    guest: {
      machine: 'farfault-v86',
      memoryBytes: 128 * 2 ** 20,
      here: there,
      progress,
      printed: printed.summary(),
    },
    ...changes,
  }
}

const SOURCE = side('source', 'abc', 3)
const DESTINATION = side('destination', 'def', 6)

test('a demo that went well has every field filled, from the side that knows', () => {
  const report = demoReport(SOURCE, DESTINATION, [])
  assert.equal(report.ok, true)
  assert.deepEqual(report.problems, [])
  assert.equal(report.downtimeMs, 12)
  assert.equal(report.faults, 60)
  assert.equal(report.pages.requested, 50)
  for (const [name, value] of Object.entries(report)) assert.notEqual(value, null, name)
  const text = demoSummary(report).join('\n')
  assert.match(text, /6 letters in order: no gap, no repeat {2}…abc\|def…/)
  assert.match(text, /latency p50 60 µs, p99 3.6 ms, max 12.0 ms/)
})

test('whatever is wrong makes a demo wrong, and is said', () => {
  const wrongRam = { ok: false, detail: 'page 7' }
  const cases: [SideReport | null, SideReport | null, string[], RegExp][] = [
    [SOURCE, side('destination', 'efg', 6), [], /after the switch came "e" where "d" was due/],
    [
      SOURCE,
      side('destination', 'def', 6, { ok: false, error: 'RAM', ramCheck: wrongRam }),
      [],
      /destination: RAM/,
    ],
    [SOURCE, side('destination', 'def', 6, { ramCheck: null }), [], /was not checked/],
    [side('source', 'abc', 3, { ok: false, error: 'reset' }), null, [], /source: reset/],
    [null, null, ['the source was killed by SIGKILL'], /killed by SIGKILL/],
  ]
  for (const [source, destination, troubles, message] of cases) {
    const report = demoReport(source, destination, troubles)
    assert.equal(report.ok, false)
    assert.match(report.problems.join('; '), message)
    assert.match(demoSummary(report).join('\n'), message)
  }
})

test('the sides sum up what they know', () => {
  assert.match(migrateSummary(SOURCE).join('\n'), /page requests +55\n.*went over at 3 passes/)
  assert.match(
    receiveSummary(DESTINATION).join('\n'),
    /blocktime +200 ms(?:.|\n)*RAM check +right: all pages agree/,
  )
  const stayed = side('source', 'abc', 3, {
    ok: false,
    error: 'the connection was lost. The guest runs on here',
    ramCheck: { ok: true, detail: 'fine' },
    guest: { ...SOURCE.guest, here: true },
  })
  assert.match(
    migrateSummary(stayed).join('\n'),
    /ran on, and was stopped here at 3 passes\n.*RAM check +right: fine/,
  )
})
