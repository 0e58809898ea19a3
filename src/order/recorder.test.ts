import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { LIMITS } from '../limits.js'
import { createRecorder, type DemandRecord, type RecorderParts } from './recorder.js'
import { mergeRecord, type WorkingSet } from './working-set.js'

function setUp(changes: Partial<RecorderParts> = {}) {
  const records: DemandRecord[] = []
  const recorder = createRecorder({
    ...{ totalPages: 1000, known: new Uint32Array(0), settleMs: 100, maxMs: 1000, isSent: () => false },
    bytesPerSecond: () => 5,
    loadedAtMs: () => 57,
    done: (record) => records.push(record),
    ...changes,
  })
  return { recorder, records }
}

test('a page counts once, with the time of its first request', () => {
  const { recorder, records } = setUp()
  recorder.note(1, 1, 40) // before the guest runs nothing counts
  recorder.begin(50)
  recorder.note(7, 2, 51)
  recorder.note(8, 2, 52.5)
  recorder.note(7, 1, 60)
  recorder.end(false)
  recorder.end(false)
  assert.equal(records.length, 1)
  assert.deepEqual([...records[0]!.pages], [7, 8, 9])
  assert.deepEqual([...records[0]!.atUs], [1000, 1000, 2500])
  assert.equal(records[0]!.loadedMs, 7)
  assert.equal(records[0]!.settled, false)
})

test('it ends when nothing new has been asked for, and says how long that takes', () => {
  const { recorder, records } = setUp()
  assert.equal(recorder.settle(0), -1)
  recorder.begin(0)
  assert.equal(recorder.settle(30), 70)
  recorder.note(1, 1, 80)
  recorder.note(1, 1, 170) // nothing new
  assert.equal(recorder.settle(179.5), 1)
  assert.equal(records.length, 0)
  recorder.note(2, 1, 180)
  assert.equal(records.length, 1)
  assert.deepEqual([...records[0]!.pages], [1])
  assert.equal(recorder.settle(181), -1)
})

test('it ends after its time however much is asked for', () => {
  const { recorder, records } = setUp()
  recorder.begin(0)
  for (let ms = 10; ms < 3000; ms += 10) recorder.note(ms / 10, 1, ms)
  assert.equal(records.length, 1)
  assert.equal(records[0]!.pages.at(-1), 99)
  assert.equal(records[0]!.settled, true)
})

test('a guest that never ran leaves no record', () => {
  const { recorder, records } = setUp()
  recorder.end(false)
  assert.equal(records.length, 0)
})

test('what was known is counted: late when it was asked for, ahead when it was sent without that', () => {
  const { recorder, records } = setUp({ known: Uint32Array.of(1, 2, 3, 4), isSent: (page) => page < 4 })
  recorder.begin(0)
  recorder.note(2, 1, 1)
  recorder.note(9, 1, 2)
  recorder.end(false)
  const { late, ahead } = records[0]!
  assert.deepEqual({ late, ahead }, { late: 1, ahead: 2 })
})

const recordOf = (...entries: [page: number, atUs: number][]): DemandRecord => ({
  pages: Uint32Array.from(entries, ([page]) => page),
  atUs: Uint32Array.from(entries, ([, atUs]) => atUs),
  ...{ late: 0, ahead: 0, bytesPerSecond: 0, loadedMs: 0, settled: true },
})
const rows = ({ pages, firstUs, seen }: WorkingSet) =>
  [...pages].map((page, i) => [page, firstUs[i], seen[i]])

test('records merge: known pages stay though nobody asked for them, new ones come in by their time', () => {
  const first = mergeRecord(undefined, recordOf([5, 10], [3, 20], [9, 30]))
  assert.deepEqual(rows(first), [
    [5, 10, 1],
    [3, 20, 1],
    [9, 30, 1],
  ])
  const second = mergeRecord(first, recordOf([9, 12], [4, 15]))
  assert.deepEqual(rows(second), [
    [5, 10, 1],
    [9, 12, 2],
    [4, 15, 1],
    [3, 20, 1],
  ])
  assert.equal(second.records, 2)
})

test('merging never forgets a page, counts each once a record, and keeps the order of first use', () => {
  const record = fc
    .uniqueArray(fc.nat(50))
    .map((pages) => recordOf(...pages.map((page, i) => [page, i * 7] as [number, number])))
  fc.assert(
    fc.property(fc.array(record, { minLength: 1, maxLength: 6 }), (records) => {
      let set: WorkingSet | undefined
      for (const each of records) set = mergeRecord(set, each)
      const all = new Set(records.flatMap(({ pages }) => [...pages]))
      assert.deepEqual(new Set(set!.pages), all)
      assert.equal(set!.pages.length, all.size)
      assert.equal(set!.records, records.length)
      for (const [i, page] of set!.pages.entries()) {
        assert.equal(set!.seen[i], records.filter(({ pages }) => pages.includes(page)).length)
        if (i > 0) assert.ok(set!.firstUs[i - 1]! <= set!.firstUs[i]!)
      }
    }),
  )
})

test('of too many pages those go that were asked for once and late', () => {
  const max = LIMITS.workingSetPagesMax
  const first = mergeRecord(undefined, recordOf([0, 900_000_000], [1, 1]))
  const twice = mergeRecord(first, recordOf([0, 900_000_000]))
  const many = mergeRecord(twice, {
    pages: Uint32Array.from({ length: max }, (_, i) => i + 2),
    atUs: Uint32Array.from({ length: max }, (_, i) => i + 2),
    ...{ late: 0, ahead: 0, bytesPerSecond: 0, loadedMs: 0, settled: true },
  })
  assert.equal(many.pages.length, max)
  assert.ok(many.pages.includes(0) && many.pages.includes(1))
  assert.ok(!many.pages.includes(max + 1) && !many.pages.includes(max))
})
