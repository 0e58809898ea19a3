// The working set of an image: written, merged, read, and refused when it is not what was written or not of this image.

import assert from 'node:assert/strict'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { deflateRawSync } from 'node:zlib'
import { ImageError, UsageError } from '../../src/errors.js'
import { createDemand, type DemandOptions } from '../../src/image/demand.js'
import { checksumOf } from '../../src/image/fields.js'
import { openImage } from '../../src/image/image.js'
import { inspectFile } from '../../src/image/inspect.js'
import { workingSetPath } from '../../src/image/sidecar.js'
import {
  addRun,
  encodeWorkingSet,
  identify,
  parseWorkingSet,
  readTrace,
  readWorkingSet,
} from '../../src/image/working-set-file.js'
import { LIMITS } from '../../src/limits.js'
import type { DemandRecord } from '../../src/order/recorder.js'
import { createBitmap } from '../../src/ram/bitmap.js'
import { temporaryDirectory } from './images.js'
import { makeImage } from './saved.js'

const recordOf = (pages: readonly number[], counts: Partial<DemandRecord> = {}): DemandRecord => ({
  pages: Uint32Array.from(pages),
  atUs: Uint32Array.from(pages, (_, i) => 100 * i),
  ...{ late: 0, ahead: 0, bytesPerSecond: 1000, loadedMs: 5.5, settled: true },
  ...counts,
})

async function setUp(t: Parameters<typeof temporaryDirectory>[0]) {
  const directory = temporaryDirectory(t)
  const { path } = await makeImage(directory)
  const file = workingSetPath(path)
  const demand = (options: DemandOptions = {}) => {
    const image = openImage(path)
    try {
      return createDemand(image, options)
    } finally {
      image.close()
    }
  }
  const identity = () => {
    const image = openImage(path)
    try {
      return identify(image)
    } finally {
      image.close()
    }
  }
  return { directory, path, file, demand, identity }
}

test('a run is recorded when nothing is known, and later runs begin with it', async (t) => {
  const { path, file, demand, directory } = await setUp(t)
  const first = demand()
  assert.equal(first.order, 'linear')
  assert.equal(first.recorded, undefined)
  first.take(recordOf([7, 3, 900]))
  const report = first.report()
  assert.deepEqual([report.ignored, report.notWritten], [null, null])
  assert.deepEqual(report.written, { file, pages: 3, records: 1 })
  assert.equal(report.run!.missed, 3)

  const second = demand()
  assert.equal(second.order, 'recorded-around')
  assert.deepEqual([...second.recorded!], [7, 3, 900])
  second.take(recordOf([3, 50], { late: 1, ahead: 2 }))
  const { workingSet } = inspectFile(path)
  const { pages, ranges, records, last } = workingSet!
  assert.deepEqual({ pages, ranges, records }, { pages: 3, ranges: 3, records: 1 }, 'not asked to record')
  assert.deepEqual([last.ahead, last.late, last.missed, last.hitRate], [2, 1, 1, 0.5])

  const third = demand({ record: true, order: 'recorded' })
  third.take(recordOf([50, 3], { late: 1, ahead: 2 }))
  const merged = demand({ record: false })
  assert.equal(merged.record, undefined, 'nothing is noted')
  assert.deepEqual([...merged.recorded!], [7, 50, 3, 900])
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.includes('partial')),
    [],
  )
})

test('what a record lacks is learnt, with what is near to it: that came along, and might have been asked for', async (t) => {
  const { path, demand } = await setUp(t)
  demand().take(recordOf([7, 3, 900]))
  demand().take(recordOf([3, 50, 51, 52], { late: 1, ahead: 2 }))
  assert.equal(demand().recorded!.length, 3, 'so few are not worth it')
  demand().take(recordOf([100, 3, 101, 270, 50], { late: 1, ahead: 2 }))
  const near = (page: number) => Array.from({ length: 16 }, (_, i) => page - (page % 16) + i)
  const all = new Set([7, 3, 900, ...near(100), ...near(270), ...near(50)])
  assert.deepEqual(new Set(demand().recorded), all)
  assert.equal(demand().order, 'recorded-around')
  const { records, cameAlong } = inspectFile(path).workingSet!
  assert.deepEqual({ records, cameAlong }, { records: 2, cameAlong: 15 + 15 + 14 })
  assert.deepEqual(
    new Set(readTrace(path).pages),
    new Set([7, 3, 900, 100, 101, 270, 50]),
    'as it was asked for',
  )

  demand({ order: 'recorded' }).take(recordOf([400, 410, 420, 430]))
  assert.equal(demand().recorded!.length, all.size + 4, 'there each comes alone')
  for (const options of [{ record: false }, { push: false }, { order: 'linear' }] as const)
    demand(options).take(recordOf([500, 510, 520, 530]))
  assert.equal(demand().recorded!.length, all.size + 4)
})

test('an order that hides what is wanted does not make the first record by itself', async (t) => {
  const { demand } = await setUp(t)
  const around = demand({ order: 'fault-around' })
  around.take(recordOf([1]))
  assert.equal(demand().recorded, undefined)
  const asked = demand({ order: 'fault-around', record: true })
  asked.take(recordOf([17]))
  assert.deepEqual(
    [...demand().recorded!],
    [17, ...Array.from({ length: 16 }, (_, i) => 16 + i).filter((page) => page !== 17)],
    'what came along may have been wanted',
  )
})

test('a record is to be complete only where it is kept: the push need not be patient in other runs', async (t) => {
  const { demand } = await setUp(t)
  const first = demand()
  assert.ok(first.keeps)
  assert.equal(demand({ record: false }).keeps, false)
  assert.equal(demand({ order: 'fault-around' }).keeps, false)
  first.take(recordOf([7, 3, 900]))
  assert.equal(demand().keeps, false, 'there is one')
  assert.ok(demand({ record: true }).keeps, 'unless more is wanted')
})

test('a run that was cut short is added to, until one has settled', async (t) => {
  const { demand } = await setUp(t)
  demand().take(recordOf([1, 2], { settled: false }))
  const second = demand()
  assert.equal(second.order, 'recorded', 'and nothing is hidden')
  second.take(recordOf([3], { ahead: 2 }))
  assert.deepEqual([...demand().recorded!].sort(), [1, 2, 3])
  assert.equal(demand().order, 'recorded-around')
  assert.equal(demand({ record: false }).order, 'recorded-around')
  demand({ record: true }).take(recordOf([4], { settled: false }))
  assert.equal(demand().order, 'recorded-around', 'one that settled stays settled')
})

test('clones that began with nothing: whoever writes last merges', async (t) => {
  const { demand } = await setUp(t)
  const clones = [demand(), demand(), demand()]
  for (const [i, clone] of clones.entries()) clone.take(recordOf([1, 10 + i]))
  assert.deepEqual(clones.at(-1)!.report().written!.records, 3)
  assert.deepEqual(new Set(demand().recorded), new Set([1, 10, 11, 12]))
})

test('one of an earlier image is used, but for what came along; after a run it is one of this image', async (t) => {
  const { path, file, demand, identity } = await setUp(t)
  demand().take(recordOf([7, 300]))
  demand().take(recordOf([100, 101, 102, 103], { ahead: 2 }))
  assert.equal(demand().recorded!.length, 2 + 16)
  const own = identity()
  const parkedAgain = { ...readWorkingSet(own)!, image: { ...own.image, metadataCrc32: '00000000' } }
  writeFileSync(file, encodeWorkingSet(parkedAgain))
  const before = inspectFile(path).workingSet!
  assert.deepEqual([before.earlier, before.pages, before.cameAlong, before.records], [true, 6, 0, 2])

  const next = demand()
  assert.equal(next.order, 'recorded-around')
  assert.deepEqual(new Set(next.recorded), new Set([7, 300, 100, 101, 102, 103]))
  const { workingSet, ignored } = next.report()
  assert.deepEqual([workingSet!.earlier, workingSet!.pages, ignored], [true, 6, null])
  next.take(recordOf([], { ahead: 6 }))
  const after = inspectFile(path).workingSet!
  assert.deepEqual([after.earlier, after.pages, after.records, after.last.ahead], [false, 6, 2, 6])
})

/** As a VM with twice the RAM in one of its blocks leaves it. */
function withOtherRam(set: ReturnType<typeof parseWorkingSet>) {
  const [block, ...others] = set.blocks
  const { name, present } = block!
  return { ...set, blocks: [{ name, present: createBitmap(2 * present.length) }, ...others] }
}

test('one of a VM with other RAM is ignored, that is said, and it gives way to a new one', async (t) => {
  const { path, file, demand, identity } = await setUp(t)
  demand().take(recordOf([1]))
  const own = identity()
  writeFileSync(file, encodeWorkingSet(withOtherRam(readWorkingSet(own)!)))
  assert.throws(() => readWorkingSet(own), ImageError)
  assert.match(inspectFile(path).workingSetProblem!, /with other RAM/)
  const next = demand()
  assert.equal(next.recorded, undefined)
  assert.match(next.report().ignored!, /with other RAM/)
  next.take(recordOf([2]))
  assert.deepEqual([...readWorkingSet(own)!.pages], [2])
})

test('that of another image is used where an image has none, given by its own name or its image', async (t) => {
  const { directory, file, demand } = await setUp(t)
  demand().take(recordOf([7, 300]))
  const moved = join(directory, 'before.img')
  renameSync(file, workingSetPath(moved))
  for (const workingSet of [moved, workingSetPath(moved)]) {
    const run = demand({ workingSet })
    assert.deepEqual([...run.recorded!], [7, 300])
    assert.equal(run.report().workingSet!.file, workingSetPath(moved))
  }
  demand({ workingSet: moved }).take(recordOf([20, 40, 60, 80], { ahead: 2 }))
  const own = new Set(demand().recorded)
  assert.ok(
    [7, 300, 20, 80].every((page) => own.has(page)),
    'what it had is in the new one',
  )
  assert.equal(readTrace(moved).pages.length, 2, 'it is as it was')

  demand({ record: true, order: 'recorded' }).take(recordOf([500]))
  assert.ok(new Set(demand({ workingSet: moved }).recorded).has(500), 'its own goes first')
  unlinkSync(file)
  assert.throws(() => demand({ workingSet: join(directory, 'none.img') }), UsageError)
  writeFileSync(workingSetPath(moved), encodeWorkingSet(withOtherRam(readTrace(moved))))
  assert.match(demand({ workingSet: moved }).report().ignored!, /with other RAM/)
})

test('without a sidecar the checksum of the metadata is calculated: the same one', async (t) => {
  const { path, identity } = await setUp(t)
  const { metadataCrc32 } = identity().image
  unlinkSync(`${path}.json`)
  assert.equal(identity().image.metadataCrc32, metadataCrc32)
})

test('what cannot be written is said, and hurts nothing', async (t) => {
  const { file, demand, directory } = await setUp(t)
  const run = demand()
  mkdirSync(file)
  run.take(recordOf([1]))
  assert.match(run.report().notWritten!, /EISDIR|directory/)
  assert.equal(run.report().run!.asked, 1)
  assert.match(demand().report().ignored!, /EISDIR/)
  rmdirSync(file)
  assert.ok(!readdirSync(directory).some((name) => name.includes('partial')))
  assert.ok(!existsSync(file))
})

test('every byte counts: a file that was changed anywhere is refused or says the same', async (t) => {
  const { file, demand } = await setUp(t)
  demand().take(recordOf([1, 2, 3, 40]))
  const json = readFileSync(file, 'utf8')
  const sound = JSON.stringify(parseWorkingSet(json, file))
  for (let at = 0; at < json.length; at += 3) {
    const spoilt = json.slice(0, at) + String.fromCharCode(json.charCodeAt(at) ^ 1) + json.slice(at + 1)
    for (const text of [spoilt, json.slice(0, at)]) {
      try {
        assert.equal(JSON.stringify(parseWorkingSet(text, file)), sound)
      } catch (error) {
        assert.ok(error instanceof ImageError, String(error))
      }
    }
  }
  appendFileSync(file, ' x')
  assert.throws(() => readTrace(file), ImageError)
  assert.throws(() => readTrace(`${file}.no`), UsageError)
})

test('fields that are wrong in themselves are named', async (t) => {
  const { file, demand } = await setUp(t)
  demand().take(recordOf([1, 2, 3]))
  const { crc32: _, ...fields } = JSON.parse(readFileSync(file, 'utf8'))
  const columnsOf = (bytes: Uint8Array) => deflateRawSync(bytes).toString('base64')
  const columns = (pages: number[], us: number[]) => {
    const bytes = Buffer.alloc(10 * pages.length)
    for (const [i, page] of pages.entries()) bytes.writeUInt32LE(page, 4 * i)
    for (const [i, atUs] of us.entries()) bytes.writeUInt32LE(atUs, 4 * (pages.length + i))
    return columnsOf(bytes)
  }
  const wrong: Readonly<Record<string, object>> = {
    version: { version: 2 },
    'recorded.order': { recorded: { ...fields.recorded, order: 'random' } },
    'last.at': { last: { ...fields.last, at: 'today' } },
    'image.bytes': { image: { ...fields.image, bytes: -1 } },
    'blocks[0].pages': { blocks: [{ ...fields.blocks[0], pages: 2 ** 40 }] },
    'blocks[0].present': { blocks: [{ ...fields.blocks[0], present: columnsOf(Buffer.alloc(2 ** 20)) }] },
    pages: { pages: LIMITS.workingSetPagesMax + 1 },
    columns: { columns: columns([1, 2], [0, 1]) },
    'columns: expected each page once': { columns: columns([1, 2, 1], [0, 1, 2]) },
    'columns: expected pages below': { columns: columns([1, 2, 2 ** 31], [0, 1, 2]) },
    'columns: expected the order': { columns: columns([1, 2, 3], [0, 2, 1]) },
    extra: { extra: 1 },
  }
  for (const [where, change] of Object.entries(wrong)) {
    const changed = { ...fields, ...change }
    const text = JSON.stringify({ ...changed, crc32: checksumOf(changed) })
    assert.throws(
      () => parseWorkingSet(text, file),
      (error: unknown) => error instanceof ImageError && error.message.includes(`field ${where}`),
      where,
    )
  }
})

test('a run that is not kept still replaces nothing but the last run', async (t) => {
  const { identity, demand } = await setUp(t)
  demand().take(recordOf([1, 2]))
  const of = identity()
  addRun(of, { record: recordOf([9]), order: 'bubbling', keep: false, known: undefined })
  const set = readWorkingSet(of)!
  assert.deepEqual([...set.pages], [1, 2])
  assert.equal(set.recorded.order, 'linear')
  assert.equal(set.last.order, 'bubbling')
})
