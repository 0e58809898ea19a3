import assert from 'node:assert/strict'
import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { readIntoCache } from '../../bench/process-facts.js'
import { dropped } from '../../test/image/images.js'
import { LIMITS } from '../limits.js'
import { viewOf } from '../os/mapping.js'
import { numberBlocks } from '../ram/block.js'
import { encodeDevice } from '../wire/device-sections.js'
import { CHUNK_PAGES } from './checksums.js'
import { createChunkReader } from './chunk-reader.js'
import { openImage } from './image.js'
import { createImageWriter } from './writer.js'

const PAGE = 4096
/** More than are read at once, and the last of them is short. */
const CHUNKS = LIMITS.sendPairsMax + 2
const PAGES = CHUNKS * CHUNK_PAGES - 5

/**
 * One block, and each tenth page of it (or each) holds bytes that are those of its number. In the places of the others, the
 * file holds zeros or anything.
 */
function setUp(t: TestContext, every = 10, otherwise: 'zeros' | 'anything' = 'anything') {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-chunks-'))
  const path = join(directory, 'vm.img')
  const configuration = { machine: 'test-1', uuid: new Uint8Array(16), capabilities: [] }
  const writer = createImageWriter(path, {
    ...{ configuration, ramSectionId: 2, replace: false },
    blocks: [{ name: 'ram', length: PAGES * PAGE }],
  })
  for (let page = 0; page < PAGES; page += every) {
    writer.writeRun(0, page, new Uint8Array(PAGE).fill(1 + (page % 250)), 0, 1)
  }
  writer.finish({
    devices: encodeDevice(5, 'device', 1, Uint8Array.of(1)),
    made: { how: 'test', by: 'test', from: null },
  })
  readIntoCache(path)
  const image = openImage(path, { requireSidecar: true })
  const { pagesOffset, present } = image.blocks[0]!
  for (let page = 0; page < PAGES; page++)
    if (otherwise === 'anything' && !present.get(page)) damage(path, pagesOffset, page)
  const chunks = createChunkReader(image, true)
  t.after(() => {
    chunks.close()
    image.close()
    rmSync(directory, { recursive: true, force: true })
  })
  /** Reads a page and leaves it where it is; the answer says whether it is there still. */
  function read(page: number, urgent = false): () => boolean {
    const bytes = viewOf(chunks.read(0, page, 1, urgent).address, PAGE)
    return () => bytes.every((byte) => byte === 1 + (page % 250))
  }
  return { chunks, read, image, path }
}

/** A page of that chunk that holds something. */
const inChunk = (chunk: number): number => Math.ceil((chunk * CHUNK_PAGES) / 10) * 10

test('pages stay where they are until all are released, and then their memory serves others', (t) => {
  const { chunks, read } = setUp(t)
  const held = Array.from({ length: 20 }, (_, i) => read(inChunk(i)))
  assert.ok(held.every((isThere) => isThere()))
  chunks.release(19, false)
  const more = Array.from({ length: 20 }, (_, i) => read(inChunk(100 + i)))
  assert.ok(held.at(-1)!(), 'one was still to be sent')
  assert.ok(more.every((isThere) => isThere()))
  chunks.release(21, false)
  assert.ok(read(inChunk(200))())
  assert.equal(held[0]!(), false, 'its memory was not used again')
})

test('adjacent pages come together, up to the end of their chunk', (t) => {
  const { chunks } = setUp(t)
  const first = { ...chunks.read(0, 3, 5, false) }
  assert.equal(first.pages, 5)
  const rest = chunks.read(0, 8, 100, false)
  assert.equal(rest.pages, 8)
  assert.equal(rest.address, first.address + 5 * PAGE)
  chunks.release(12, false)
  assert.equal(chunks.read(0, 3, 1, false).address, first.address, 'one of them was still to be sent')
})

test('what goes over one channel takes nothing from the other', (t) => {
  const { chunks, read } = setUp(t)
  const main = read(0)
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    assert.ok(read(inChunk(chunk), true)())
    chunks.release(1, true)
  }
  assert.ok(main())
})

test('a channel that is lost gives back what was read for it, however much that was', (t) => {
  const { chunks, read } = setUp(t)
  for (let connection = 0; connection < 3; connection++) {
    for (let slot = 0; slot < LIMITS.sendPairsMax; slot++) assert.ok(read(inChunk(connection + slot))())
    chunks.release(3, false) // some were sent
    chunks.release(Number.POSITIVE_INFINITY, false)
  }
})

test('a whole chunk stays where it is, and can be had for as long as anybody likes', (t) => {
  const { chunks } = setUp(t, 1)
  const first = { ...chunks.read(0, 3, 100, false) }
  assert.deepEqual([first.pages, first.lasting], [100, true], 'and so are those behind it')
  for (let page = CHUNK_PAGES; page < 40 * CHUNK_PAGES; page++) {
    const { address, lasting } = chunks.read(0, page, 1, false)
    assert.ok(lasting)
    assert.ok(viewOf(address, PAGE).every((byte) => byte === 1 + (page % 250)))
    chunks.release(1, false)
  }
  assert.ok(viewOf(first.address, PAGE).every((byte) => byte === 1 + 3))
})

test('whole chunks that follow one another come together, up to one that is short, or was found before', (t) => {
  const { chunks } = setUp(t, 1)
  const from = (chunk: number): number => chunks.read(0, chunk * CHUNK_PAGES, 100, false).pages / CHUNK_PAGES
  assert.equal(from(CHUNKS - 3), 2)
  assert.equal(from(CHUNKS - 6), 3)
  assert.equal(from(CHUNKS - 6), 5, 'all of them are found now')
})

test('one that somebody waits for stays where it is, and alone, where the page cache has it', (t) => {
  const { chunks } = setUp(t, 1)
  const { lasting, pages } = chunks.read(0, 3, 100, true)
  assert.deepEqual([lasting, pages], [true, CHUNK_PAGES - 3])
})

test('of a file that is not in the page cache one that somebody waits for is a copy, unless it was had before', (t) => {
  const { chunks, path } = setUp(t, 1)
  if (!dropped(t, path)) return
  assert.equal(chunks.read(0, 3, 1, true).lasting, false)
  if (!dropped(t, path)) return
  assert.equal(chunks.read(0, 4, 1, false).lasting, true)
  assert.equal(chunks.read(0, 5, 1, true).lasting, true)
})

test('what is likely to be wanted is had before it is asked for', (t) => {
  const { chunks, path } = setUp(t, 1)
  const blocks = numberBlocks([{ name: 'ram', length: PAGES * PAGE, pageSize: PAGE, address: 0 }])
  const inThree = Uint32Array.of(5 * CHUNK_PAGES + 1, 90, 5 * CHUNK_PAGES + 2, PAGES - 1)
  if (!dropped(t, path)) return
  chunks.prepare(inThree, blocks, 10_000)
  assert.equal(chunks.read(0, 5 * CHUNK_PAGES + 7, 1, true).lasting, true)
  assert.equal(chunks.read(0, 91, 1, true).lasting, true)
  assert.equal(chunks.read(0, PAGES - 1, 1, true).lasting, false, 'of a chunk that is not whole')
  assert.equal(chunks.read(0, 200, 1, true).lasting, false, 'nobody said that it was likely')
})

test('there may be no time to have it before', (t) => {
  const { chunks, path } = setUp(t, 1)
  const blocks = numberBlocks([{ name: 'ram', length: PAGES * PAGE, pageSize: PAGE, address: 0 }])
  chunks.prepare(Uint32Array.of(90), blocks, -1)
  if (!dropped(t, path)) return
  assert.equal(chunks.read(0, 90, 1, true).lasting, false)
})

test('a chunk that lacks pages stays where it is, too, where the file holds nothing in their places', (t) => {
  const { chunks, path, image } = setUp(t, 10, 'zeros')
  for (const urgent of [false, true]) {
    const { lasting, address, pages } = chunks.read(0, urgent ? 10 : 100, 1, urgent)
    assert.deepEqual([lasting, pages], [true, 1])
    assert.ok(viewOf(address, PAGE).every((byte) => byte === 1 + (urgent ? 10 : 100)))
  }
  damage(path, image.blocks[0]!.pagesOffset, 200)
  assert.throws(() => chunks.read(0, 200, 1, false), { name: 'ImageError', message: /checksum/ })
})

test('behind such a chunk one that holds anything there is a copy, each time', (t) => {
  const { chunks, path, image, read } = setUp(t, 10, 'zeros')
  damage(path, image.blocks[0]!.pagesOffset, 2 * CHUNK_PAGES + 1)
  const lasting = (page: number) => chunks.read(0, page, 100, false).lasting
  assert.deepEqual([lasting(30), lasting(40), lasting(40), lasting(50)], [true, false, false, true])
  assert.ok(read(40)())
})

test('a chunk that holds anything in the places of pages that it lacks is a copy, and so is the short one at the end', (t) => {
  assert.equal(setUp(t).chunks.read(0, 3, 1, false).lasting, false)
  const { chunks } = setUp(t, 1)
  assert.equal(chunks.read(0, PAGES - 1, 1, false).lasting, false)
  assert.equal(chunks.read(0, PAGES - CHUNK_PAGES, 1, false).lasting, true)
})

/** Changes a byte of the page. */
function damage(path: string, pagesOffset: number, page: number): void {
  const file = openSync(path, 'r+')
  writeSync(file, Buffer.from('x'), 0, 1, pagesOffset + page * PAGE)
  closeSync(file)
}

test('a whole chunk that is damaged is named', (t) => {
  const { chunks, image, path } = setUp(t, 1)
  damage(path, image.blocks[0]!.pagesOffset, 2 * CHUNK_PAGES + 5)
  chunks.read(0, 31, 1, false)
  assert.throws(() => chunks.read(0, 32, 1, false), {
    name: 'ImageError',
    message: /pages 32 to 47: checksum/,
  })
})

test('damage is no business of who prepares, but of who wants the page', (t) => {
  const { chunks, image, path } = setUp(t, 1)
  const blocks = numberBlocks([{ name: 'ram', length: PAGES * PAGE, pageSize: PAGE, address: 0 }])
  damage(path, image.blocks[0]!.pagesOffset, 2 * CHUNK_PAGES + 5)
  chunks.prepare(Uint32Array.of(0, 33, 50), blocks, 10_000)
  assert.equal(chunks.read(0, 0, 1, true).lasting, true)
  for (const urgent of [true, false])
    assert.throws(() => chunks.read(0, 33, 1, urgent), {
      name: 'ImageError',
      message: /pages 32 to 47: checksum/,
    })
})

test('an image that has become shorter is an error, and no end of the process, wherever that is', (t) => {
  const { chunks, image, path } = setUp(t, 1)
  const last = 40
  for (let page = last + 3 * CHUNK_PAGES; page >= last; page--) {
    truncateSync(path, image.blocks[0]!.pagesOffset + page * PAGE)
    for (const urgent of [true, false])
      assert.throws(() => chunks.read(0, page + 1, 1, urgent), {
        name: 'ImageError',
        message: /the file ends inside page data/,
      })
  }
  assert.ok(chunks.read(0, 0, 1, false).lasting)
})
