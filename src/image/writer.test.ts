import assert from 'node:assert/strict'
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import { cachedMiB } from '../../bench/process-facts.js'
import { dropped, knowsDirectIo } from '../../test/image/images.js'
import { encodeDevice } from '../wire/device-sections.js'
import { createChunkReader } from './chunk-reader.js'
import { openImage } from './image.js'
import { createImageWriter, type ImageWriter } from './writer.js'

const PAGE = 4096
const MADE = { how: 'test', by: 'test', from: null }
const DEVICES = encodeDevice(5, 'device', 1, Uint8Array.of(1, 2, 3))
const CONFIGURATION = { machine: 'test-1', uuid: new Uint8Array(16).fill(7), capabilities: ['x-other'] }

function directoryOf(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-writer-'))
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

interface Options {
  readonly pageCache?: boolean
  readonly pages?: readonly number[]
  readonly replace?: boolean
  readonly ramSectionId?: number
}

function writerOf(
  path: string,
  { pages = [40], replace = false, ramSectionId = 2, pageCache = false }: Options = {},
): ImageWriter {
  const blocks = pages.map((count, index) => ({ name: `block${index}`, length: count * PAGE }))
  return createImageWriter(path, { configuration: CONFIGURATION, blocks, ramSectionId, replace, pageCache })
}

const write = fc.record({
  kind: fc.constantFrom('run', 'run', 'dense', 'zero', 'read'),
  block: fc.nat(1),
  page: fc.nat(299),
  pages: fc.integer({ min: 1, max: 60 }),
  /** Of page i of a run, in which every third page is zero, or of a dense run, in which none is. */
  seed: fc.nat(1000),
})

/** Where the file system cannot do the first, both are the second. */
const WAYS = [
  ['past the page cache', false],
  ['through it', true],
] as const

for (const [how, pageCache] of WAYS) {
  test(`an image that is written ${how} holds what was written last, and verifies`, {
    timeout: 180_000,
  }, (t) => {
    const path = join(directoryOf(t), 'vm.img')
    const sizes = [300, 37]
    fc.assert(
      fc.property(fc.array(write, { minLength: 20, maxLength: 80 }), (writes) => {
        const model = sizes.map((pages) => new Uint8Array(pages))
        const writer = writerOf(path, { pages: sizes, replace: true, pageCache })
        const scratch = new Uint8Array(PAGE)
        for (const { kind, block, page, pages, seed } of writes) {
          const first = page % sizes[block]!
          const count = Math.min(pages, sizes[block]! - first)
          if (kind === 'zero') {
            writer.zeroRun(block, first, count)
            model[block]!.fill(0, first, first + count)
          } else if (kind === 'read') {
            writer.readPage(block, first, scratch)
            assert.deepEqual([...new Set(scratch)], [model[block]![first]])
          } else {
            const bytes = new Uint8Array(3 + count * PAGE)
            for (let i = 0; i < count; i++) {
              const value = kind === 'run' && (seed + i) % 3 === 0 ? 0 : 1 + ((seed + i) % 250)
              bytes.fill(value, 3 + i * PAGE, 3 + (i + 1) * PAGE)
              model[block]![first + i] = value
            }
            writer.writeRun(block, first, bytes, 3, count)
          }
        }
        const written = writer.finish({ devices: DEVICES, made: MADE })
        const image = openImage(path, { requireSidecar: true })
        const chunks = createChunkReader(image, true)
        for (const _ of image.verify());
        for (const [index, { present, pagesOffset }] of image.blocks.entries()) {
          for (const [page, value] of model[index]!.entries()) {
            assert.equal(present.get(page), value !== 0)
            readSync(image.fd, scratch, 0, PAGE, pagesOffset + page * PAGE)
            assert.deepEqual([...new Set(scratch)], [value], `page ${page}`)
            if (value === 0) continue
            chunks.read(index, page, 1, false)
            chunks.release(1, false)
          }
        }
        chunks.close()
        image.close()
        const count = model.reduce((sum, pages) => sum + pages.filter((value) => value !== 0).length, 0)
        assert.equal(written.presentPages, count)
        assert.equal(statSync(path).size, written.fileBytes)
      }),
      { numRuns: 20 },
    )
  })
}

// Several times what may be under way at once.
for (const [how, pageCache] of WAYS) {
  test(`a large image that is written ${how} holds its long runs and its short ones, and verifies`, (t) => {
    const path = join(directoryOf(t), 'vm.img')
    const pages = 17_000
    const writer = writerOf(path, { pages: [pages], pageCache })
    const value = (page: number): number => 1 + (page % 251)
    const bytes = new Uint8Array(700 * PAGE)
    const write = (first: number, count: number): void => {
      for (let i = 0; i < count; i++) bytes.fill(value(first + i), i * PAGE, (i + 1) * PAGE)
      writer.writeRun(0, first, bytes, 0, count)
    }
    for (let page = 0; page < 16_800; page += 700) write(page, 700)
    for (let page = 16_801; page < pages; page += 2) write(page, 1)
    write(5, 3) // some of a run again
    writer.zeroRun(0, 1000, 300)
    writer.finish({ devices: DEVICES, made: MADE })
    const image = openImage(path, { requireSidecar: true })
    t.after(image.close)
    for (const _ of image.verify());
    const [{ present, pagesOffset }] = image.blocks as [(typeof image.blocks)[number]]
    for (let page = 0; page < pages; page++) {
      const holds = page < 16_800 ? page < 1000 || page >= 1300 : page % 2 === 1
      assert.equal(present.get(page), holds)
      if (!holds) continue
      readSync(image.fd, bytes, 0, PAGE, pagesOffset + page * PAGE)
      assert.ok(bytes[0] === value(page) && bytes[PAGE - 1] === value(page), `page ${page}`)
    }
  })
}

test('what is written past the page cache is not there', (t) => {
  const directory = directoryOf(t)
  if (!knowsDirectIo(t, directory)) return
  const inCache = [true, false].map((pageCache) => {
    const path = join(directory, `${pageCache}.img`)
    const writer = writerOf(path, { pages: [4096], pageCache })
    writer.writeRun(0, 0, new Uint8Array(4096 * PAGE).fill(1), 0, 4096)
    writer.finish({ devices: DEVICES, made: MADE })
    return cachedMiB(path)
  })
  if (!dropped(t, join(directory, 'true.img'))) return
  assert.ok(inCache[0]! >= 16 && inCache[1]! < 1, `MiB in the page cache: ${inCache}`)
})

const LATER: Readonly<Record<string, (writer: ImageWriter) => void>> = {
  'a page becomes zero while it waits to be written': (writer) => writer.zeroRun(0, 3, 1),
  'a page becomes zero after it was written': (writer) => {
    writer.readPage(0, 0, new Uint8Array(PAGE))
    writer.zeroRun(0, 3, 1)
  },
  'a page comes again': (writer) => writer.writeRun(0, 3, new Uint8Array(PAGE).fill(9), 0, 1),
  'nothing happens': () => {},
}

for (const [what, later] of Object.entries(LATER)) {
  test(`the checksum of a chunk that was written whole is right when ${what}`, (t) => {
    const path = join(directoryOf(t), 'vm.img')
    const writer = writerOf(path)
    writer.writeRun(0, 0, new Uint8Array(40 * PAGE).fill(1), 0, 40)
    later(writer)
    writer.finish({ devices: DEVICES, made: MADE })
    const image = openImage(path)
    t.after(image.close)
    for (const _ of image.verify());
  })
}

test('what became zero again takes no space', (t) => {
  const directory = directoryOf(t)
  const sizes = [true, false].map((cleared) => {
    const path = join(directory, `${cleared}.img`)
    const writer = writerOf(path, { pages: [1024] })
    writer.writeRun(0, 0, new Uint8Array(1024 * PAGE).fill(1), 0, 1024)
    if (cleared) writer.zeroRun(0, 0, 1000)
    return writer.finish({ devices: DEVICES, made: MADE }).diskBytes
  })
  assert.ok(sizes[1]! - sizes[0]! >= 1000 * PAGE, `${sizes[1]} - ${sizes[0]}`)
})

test('configuration, devices and description go through; without a description there is a short one', (t) => {
  const directory = directoryOf(t)
  const made = { ...MADE, from: 'somewhere' }
  const described = JSON.stringify({ devices: [{ name: 'device', instance_id: 0, size: 7, note: 'kept' }] })
  for (const json of [undefined, described]) {
    const path = join(directory, `${json === undefined}.img`)
    const vmDescription = json === undefined ? undefined : Buffer.from(json)
    writerOf(path).finish({ devices: DEVICES, vmDescription, made, qemu: '10.0.2' })
    const image = openImage(path)
    t.after(image.close)
    assert.deepEqual(image.configuration, { ...CONFIGURATION, capabilities: ['mapped-ram'] })
    assert.deepEqual(Buffer.from(image.devices), Buffer.from(DEVICES))
    assert.equal(image.sections[0]!.bodyBytes, 7)
    const text = Buffer.from(image.vmDescription!).toString()
    assert.equal(
      text,
      json ??
        '{"page_size":4096,"devices":[{"name":"device","instance_id":0,"size":7,"fields":[{"name":"data","size":7,"type":"buffer"}]}]}',
    )
    assert.deepEqual({ ...image.sidecar!.made, at: '' }, { ...made, at: '' })
    assert.equal(image.sidecar!.qemu, '10.0.2')
  }
})

test('the RAM gives way when a device has its section id', (t) => {
  const path = join(directoryOf(t), 'vm.img')
  writerOf(path, { ramSectionId: 5 }).finish({ devices: DEVICES, made: MADE })
  const image = openImage(path)
  t.after(image.close)
  assert.equal(image.ramSectionId, 6)
})

test('nothing has the name before the end, and nothing is left after abort', (t) => {
  const directory = directoryOf(t)
  const path = join(directory, 'vm.img')
  const writer = writerOf(path)
  writer.writeRun(0, 0, new Uint8Array(PAGE).fill(1), 0, 1)
  assert.equal(existsSync(path), false)
  assert.equal(readdirSync(directory).length, 1)
  writer.abort()
  writer.abort()
  assert.deepEqual(readdirSync(directory), [])
})

test('devices that cannot be taken apart make no image', (t) => {
  const directory = directoryOf(t)
  const writer = writerOf(join(directory, 'vm.img'))
  assert.throws(() => writer.finish({ devices: DEVICES.subarray(1), made: MADE }), { code: 'PROTOCOL' })
  writer.abort()
  assert.deepEqual(readdirSync(directory), [])
})

test('an image is not replaced unless it is asked for; then its sidecar is replaced too', (t) => {
  const directory = directoryOf(t)
  const path = join(directory, 'vm.img')
  writerOf(path).finish({ devices: DEVICES, made: MADE })
  const before = readFileSync(path)
  assert.throws(() => writerOf(path), { code: 'USAGE' })
  const writer = writerOf(path, { replace: true, pages: [3] })
  assert.deepEqual(readFileSync(path), before)
  writer.finish({ devices: DEVICES, made: MADE })
  const image = openImage(path, { requireSidecar: true })
  t.after(image.close)
  assert.equal(image.blocks[0]!.length, 3 * PAGE)
  assert.deepEqual(readdirSync(directory).sort(), ['vm.img', 'vm.img.json'])
})

test('remnants of killed writers of the same image are removed, others are left', (t) => {
  const directory = directoryOf(t)
  // No process can have this number.
  const dead = 2 ** 22 + 1
  const others = ['.other.img.1.partial', `.vm.img.${process.ppid}.partial`, 'vm.img.partial']
  for (const name of [`.vm.img.${dead}.partial`, `.vm.img.json.${dead}.partial`, ...others])
    writeFileSync(join(directory, name), '')
  writerOf(join(directory, 'vm.img')).abort()
  assert.deepEqual(readdirSync(directory).sort(), others.sort())
})
