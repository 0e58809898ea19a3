import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { LIMITS } from '../limits.js'
import { viewOf } from '../os/mapping.js'
import { encodeDevice } from '../wire/device-sections.js'
import { CHUNK_PAGES } from './checksums.js'
import { createChunkReader } from './chunk-reader.js'
import { openImage } from './image.js'
import { createImageWriter } from './writer.js'

const PAGE = 4096
/** More than are read at once, and the last of them is short. */
const CHUNKS = LIMITS.sendPairsMax + 2
const PAGES = CHUNKS * CHUNK_PAGES - 5

/** One block, and in each chunk a page or two whose bytes are those of its number. */
function setUp(t: TestContext) {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-chunks-'))
  const path = join(directory, 'vm.img')
  const configuration = { machine: 'test-1', uuid: new Uint8Array(16), capabilities: [] }
  const writer = createImageWriter(path, {
    ...{ configuration, ramSectionId: 2, replace: false },
    blocks: [{ name: 'ram', length: PAGES * PAGE }],
  })
  for (let page = 0; page < PAGES; page += 10) {
    writer.writeRun(0, page, new Uint8Array(PAGE).fill(1 + (page % 250)), 0, 1)
  }
  writer.finish({
    devices: encodeDevice(5, 'device', 1, Uint8Array.of(1)),
    made: { how: 'test', by: 'test', from: null },
  })
  const image = openImage(path, { requireSidecar: true })
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
  return { chunks, read }
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
