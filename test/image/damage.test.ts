// Damaged images are refused with the place, and never by anything but an ImageError.

import assert from 'node:assert/strict'
import { closeSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import { ImageError } from '../../src/errors.js'
import { createChunkReader } from '../../src/image/chunk-reader.js'
import { convertStream } from '../../src/image/convert.js'
import { openImage } from '../../src/image/image.js'
import { inspectFile } from '../../src/image/inspect.js'
import { serveImage } from '../../src/image/serve.js'
import { encodeSidecar, parseSidecar } from '../../src/image/sidecar.js'
import { seeded } from '../wire/fixtures.js'
import { temporaryDirectory } from './images.js'
import { makeImage, savedStream, type TestImage } from './saved.js'

/** Change bytes in the file; answers what puts them back. */
function patch({ path, bytes }: TestImage, at: number, change: Uint8Array): () => void {
  const put = (part: Uint8Array): void => {
    const fd = openSync(path, 'r+')
    writeSync(fd, part, 0, part.length, at)
    closeSync(fd)
  }
  put(change)
  return () => put(bytes.subarray(at, at + change.length))
}

function openAndVerify(path: string): void {
  const image = openImage(path)
  try {
    for (const _ of image.verify());
  } finally {
    image.close()
  }
}

function refusal(run: () => unknown, what = 'it'): ImageError {
  try {
    run()
  } catch (error) {
    assert(error instanceof ImageError, `not an ImageError: ${(error as Error).stack}`)
    return error
  }
  return assert.fail(`${what} was not refused`)
}

/** Where things are in the file: found by their bytes, apart from the code under test. */
function places({ bytes }: TestImage) {
  const find = (text: string, from = 0) => {
    const at = bytes.indexOf(text, from, 'latin1')
    assert.ok(at >= 0, text)
    return at
  }
  const ram = find('\x03ram\0\0\0\0')
  const block = find('pc.bios')
  const pagesEnd = 10_000_000
  const timer = find('\x05timer', pagesEnd)
  const serial = find('\x06serial', timer)
  const json = find('{"configuration"')
  return { ram, block, timer, serial, json }
}
type Places = ReturnType<typeof places>

/** What is damaged: where, with what, and what is said about it. All without the help of the sidecar. */
const FIELDS: Readonly<Record<string, (at: Places) => readonly [number, readonly number[], RegExp]>> = {
  magic: () => [0, [0x52], /not a migration stream/],
  'version of the stream': () => [7, [2], /unsupported stream version/],
  configuration: () => [8, [6], /configuration section: missing/],
  'length of the machine name': () => [9, [0, 0, 1, 0], /length/],
  'name of the subsection': () => [32, [0x41], /configuration/],
  'the capability': ({ ram }) => [ram - 6, [0x6e], /mapped-ram/],
  'type of the RAM section': ({ ram }) => [ram - 5, [9], /unknown record type/],
  'id of the RAM section': ({ ram }) => [ram - 1, [7], /footer of another section/],
  'name of the RAM section': ({ ram }) => [ram + 1, [0x52], /expected ram, got Ram/],
  'instance of the RAM section': ({ ram }) => [ram + 7, [1], /expected ram, got ram\/1/],
  'version of the RAM section': ({ ram }) => [ram + 11, [3], /version of the RAM section/],
  'flag of the total': ({ ram }) => [ram + 19, [0x08], /MEM_SIZE|flags/],
  'total of the blocks': ({ ram }) => [ram + 17, [0x10], /total|EOS/],
  'length of a block name': ({ block }) => [block - 1, [0], /string length/],
  'length of a block': ({ block }) => [block + 7 + 5, [9], /bitmap offset|length|flags|total|ends inside/],
  'version of a block': ({ block }) => [
    block + 15 + 3,
    [2],
    /unknown version of the header of block pc.bios/,
  ],
  'page size of a block': ({ block }) => [block + 19 + 6, [0x20], /other page size of block pc.bios/],
  'bitmap offset of a block': ({ block }) => [block + 27 + 7, [0xee], /wrong bitmap offset of block pc.bios/],
  'pages offset of a block': ({ block }) => [
    block + 35 + 5,
    [0],
    /pages overlap the bitmap of block pc.bios/,
  ],
  'pages offset, by a page': ({ block }) => [block + 35 + 6, [0x10], /string length|flags|whole pages|EOS/],
  'bitmap of a block, behind the last page': ({ block }) => [
    block + 43 + 7,
    [0x80],
    /bitmap of block pc.bios has bit 63/,
  ],
  'type of a device section': ({ timer }) => [timer - 5, [0x0f], /unknown record type|device section/],
  'name of a device': ({ timer }) => [timer + 1, [0x54], /not the one described/],
  'instance of a device': ({ timer }) => [timer + 9, [1], /not the one described/],
  'id of a device': ({ serial }) => [serial - 1, [0xfe], /footer of another section/],
  'footer of a device': ({ serial }) => [serial + 15 + 11, [0x7d], /missing section footer/],
  'length of the description': ({ json }) => [json - 1, [0], /VMDESCRIPTION|more behind|end cannot be found/],
  'text of the description': ({ json }) => [json, [0x5b], /JSON|VMDESCRIPTION|description|more behind/],
}

async function damageable(t: TestContext): Promise<TestImage> {
  return await makeImage(temporaryDirectory(t))
}

test('each field that is damaged is refused with its place', { timeout: 180_000 }, async (t) => {
  const image = await damageable(t)
  rmSync(image.sidecar)
  const at = places(image)
  for (const [name, where] of Object.entries(FIELDS)) {
    const [offset, change, message] = where(at)
    const restore = patch(image, offset, Uint8Array.from(change))
    const error = refusal(() => openImage(image.path), name)
    assert.match(error.message, message, `${name}: ${error.message}`)
    assert.equal(error.file, image.path)
    restore()
  }
  openImage(image.path).close()
})

test('with a sidecar any changed byte of the metadata is refused', { timeout: 180_000 }, async (t) => {
  const image = await damageable(t)
  const { json, timer, ram, block } = places(image)
  const random = seeded(8)
  const ranges = [
    [0, ram + 60],
    [block - 1, block + 51],
    [timer - 40, image.bytes.length],
    [json, image.bytes.length],
  ] as const
  for (let i = 0; i < 300; i++) {
    const [from, to] = ranges[i % ranges.length]!
    const at = from + random(to - from)
    const restore = patch(image, at, Uint8Array.of(image.bytes[at]! ^ (1 + random(255))))
    refusal(() => openImage(image.path))
    restore()
  }
  openAndVerify(image.path)
})

test('damaged page data is refused when it is verified, and the pages are named', {
  timeout: 180_000,
}, async (t) => {
  const image = await damageable(t)
  const opened = openImage(image.path)
  t.after(opened.close)
  const random = seeded(9)
  for (let i = 0; i < 40; i++) {
    const blocks = [...opened.blocks.entries()].filter(([, { present }]) => present.count() > 0)
    const [index, { name, present, pagesOffset }] = blocks[random(blocks.length)]!
    const page = present.nextSet(random(present.nextSet(0) + 1))
    const at = pagesOffset + page * 4096 + random(4096)
    const restore = patch(image, at, Uint8Array.of(image.bytes[at]! ^ 0x10))
    const error = refusal(() => openAndVerify(image.path))
    assert.ok(error.message.includes(`block ${name}, pages ${page - (page % 16)} to`), error.message)
    assert.ok(error.offset <= at && at < error.offset + 65_536)
    const chunks = createChunkReader(opened, true)
    assert.equal(refusal(() => chunks.read(index, page, 1, false)).offset, error.offset)
    assert.equal(refusal(() => inspectFile(image.path, { verify: true })).offset, error.offset)
    restore()
    chunks.read(index, page, 1, false) // it is looked at again
    chunks.close()
  }
})

test('what lies in the place of a page that is not present counts for nothing', {
  timeout: 180_000,
}, async (t) => {
  const image = await damageable(t)
  const opened = openImage(image.path)
  t.after(opened.close)
  const { present, pagesOffset } = opened.blocks.find(({ name }) => name === 'pc.bios')!
  patch(image, pagesOffset + present.nextClear(0) * 4096, Uint8Array.of(1, 2, 3))
  openAndVerify(image.path)
})

test('a file that is cut off anywhere is refused', { timeout: 180_000 }, async (t) => {
  const image = await damageable(t)
  const random = seeded(10)
  const { length } = image.bytes
  const cuts = [
    0,
    7,
    8,
    30,
    100,
    1024 * 1024,
    length - 1,
    length - 20,
    ...Array.from({ length: 60 }, () => random(length)),
  ]
  for (const withSidecar of [true, false]) {
    if (!withSidecar) rmSync(image.sidecar)
    for (const cut of cuts) {
      writeFileSync(image.path, image.bytes)
      truncateSync(image.path, cut)
      const { offset } = refusal(() => openImage(image.path))
      assert.ok(offset <= cut, `cut at ${cut}, refused at ${offset}`)
    }
  }
})

test('a sidecar of which a field is changed is refused', { timeout: 180_000 }, async (t) => {
  const image = await damageable(t)
  const put = (value: unknown) => writeFileSync(image.sidecar, JSON.stringify(value))
  const leaves: (readonly (string | number)[])[] = []
  const walk = (value: unknown, path: readonly (string | number)[]): void => {
    leaves.push(path)
    if (typeof value === 'object' && value !== null)
      for (const [key, inner] of Object.entries(value)) walk(inner, [...path, key])
  }
  walk(JSON.parse(image.json), [])
  for (const path of leaves.slice(1)) {
    for (const change of [undefined, null, -1, 'x', [], { strange: 1 }]) {
      const sidecar = JSON.parse(image.json)
      const owner = path.slice(0, -1).reduce((value, key) => value[key], sidecar)
      const key = path.at(-1)!
      if (owner[key] === change) continue
      if (change === undefined) delete owner[key]
      else owner[key] = change
      put(sidecar)
      const error = refusal(() => openImage(image.path))
      assert.equal(error.file, image.sidecar)
      assert.match(error.message, /sidecar field /)
    }
  }
  for (const text of ['', '{', 'null', '[]', image.json.slice(0, -10)]) {
    writeFileSync(image.sidecar, text)
    assert.equal(refusal(() => openImage(image.path)).file, image.sidecar)
  }
  writeFileSync(image.sidecar, image.json)
  openImage(image.path).close()
})

test('a sound sidecar of another image is refused, and the field is named', {
  timeout: 180_000,
}, async (t) => {
  const image = await damageable(t)
  const sound = parseSidecar(image.json, 'x')
  const [first, ...rest] = sound.blocks
  const others: Readonly<Record<string, object>> = {
    machine: { machine: 'pc' },
    fileBytes: { fileBytes: sound.fileBytes + 1 },
    'blocks.length': { blocks: rest },
    'blocks\\[0\\].name': { blocks: [{ ...first!, name: 'ram' }, ...rest] },
    'blocks\\[0\\].length': { blocks: [{ ...first!, length: 4096 }, ...rest] },
    'blocks\\[0\\].pagesOffset': { blocks: [{ ...first!, pagesOffset: 4096 }, ...rest] },
    'blocks\\[0\\].presentPages': { blocks: [{ ...first!, presentPages: 1 }, ...rest] },
    'blocks\\[0\\].xxh64': { blocks: [{ ...first!, xxh64: '' }, ...rest] },
    metadata: { metadataCrc32: '00000000' },
  }
  for (const [name, change] of Object.entries(others)) {
    writeFileSync(image.sidecar, encodeSidecar({ ...sound, ...change }))
    assert.match(refusal(() => openImage(image.path)).message, new RegExp(name))
  }
})

test('a damaged or cut stream is not converted, and nothing is left', { timeout: 180_000 }, async (t) => {
  const directory = temporaryDirectory(t)
  const path = savedStream(directory, '10.0-precopy')
  const output = `${directory}/vm.img`
  const bytes = readFileSync(path)
  const random = seeded(11)
  for (let i = 0; i < 60; i++) {
    writeFileSync(path, bytes.subarray(0, random(bytes.length)))
    await assert.rejects(convertStream(path, output), { code: 'IMAGE', file: path })
    assert.equal(refusal(() => inspectFile(path)).file, path)
  }
  const { readdirSync } = await import('node:fs')
  assert.deepEqual(readdirSync(directory), ['10.0-precopy'])
})

test('who waits for the source of an image that has gone meanwhile hears of it', {
  timeout: 30_000,
}, async (t) => {
  const image = await damageable(t)
  const { source } = serveImage(image.path, { record: false })
  rmSync(image.path) // before the thread has opened it
  await Promise.all([source.ready, source.done].map((end) => assert.rejects(end, { message: /ENOENT/ })))
})
