import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { deflateSync } from 'node:zlib'
import { concat } from '../wire/bytes.js'
import { encodeDevice } from '../wire/device-sections.js'
import { encodeRamItem, type RamItem } from '../wire/ram-item.js'
import { encodeRamSetup } from '../wire/ram-setup.js'
import {
  type Configuration,
  END_OF_STREAM,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionEnd,
  encodeSectionPart,
  encodeSectionStart,
} from '../wire/sections.js'
import { convertStream } from './convert.js'
import { openImage } from './image.js'
import { inspectFile } from './inspect.js'

const PAGE = 4096
const BLOCKS = [
  { name: 'ram', length: 8 * PAGE, pageSize: PAGE },
  { name: 'rom', length: 2 * PAGE, pageSize: PAGE },
]
const ID = 3
const DEVICE = encodeDevice(4, 'device', 1, Uint8Array.of(1, 2, 3))

type Item = Partial<RamItem> & Pick<RamItem, 'kind'>

const item = (fields: Item): Uint8Array =>
  encodeRamItem({ offset: 0, blockName: undefined, fill: 0, data: new Uint8Array(0), ...fields })

function streamOf(items: readonly Item[], configuration: Partial<Configuration> = {}): Uint8Array {
  const [part, end] = [items.slice(0, -1), items.slice(-1)].map((list) =>
    concat([...list, { kind: 'eos' as const }].map(item)),
  )
  return concat([
    encodeHeader(),
    encodeConfiguration({ machine: 'test', ...configuration }),
    encodeSectionStart({ id: ID, idstr: 'ram', instance: 0, version: 4 }),
    encodeRamSetup(BLOCKS, { postcopy: false }),
    encodeFooter(ID),
    ...[encodeSectionPart(ID), part!, encodeFooter(ID)],
    ...[encodeSectionEnd(ID), end!, encodeFooter(ID)],
    ...[DEVICE, END_OF_STREAM],
  ])
}

const bytesOf = (value: number): Uint8Array => new Uint8Array(PAGE).fill(value)

/** Each kind of record, pages that come again, and a context that holds over the end of a section. */
const ITEMS: readonly Item[] = [
  { kind: 'page', blockName: 'ram', offset: 0, data: bytesOf(1) },
  { kind: 'page', offset: 2 * PAGE, data: bytesOf(3) },
  { kind: 'zero', offset: PAGE },
  { kind: 'zero', offset: 3 * PAGE, fill: 9 },
  { kind: 'compress', offset: 4 * PAGE, data: deflateSync(bytesOf(5)) },
  // Keeps 4090 bytes, replaces two.
  { kind: 'xbzrle', offset: 0, data: Uint8Array.of(0xfa, 0x1f, 2, 7, 8) },
  { kind: 'page', blockName: 'rom', offset: PAGE, data: bytesOf(6) },
  { kind: 'page', offset: PAGE, data: bytesOf(0) },
  { kind: 'zero', blockName: 'ram', offset: 2 * PAGE },
  { kind: 'xbzrle', offset: 5 * PAGE, data: Uint8Array.of(0, 1, 4) },
]

function files(t: TestContext, stream: Uint8Array) {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-convert-'))
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  const input = join(directory, 'saved')
  writeFileSync(input, stream)
  return { directory, input, output: join(directory, 'vm.img') }
}

test('every kind of page record ends up as the page that a destination would have', async (t) => {
  const { input, output } = files(t, streamOf(ITEMS))
  const progress: number[] = []
  await convertStream(input, output, { onProgress: (bytes, total) => progress.push(bytes / total) })
  assert.equal(progress.at(-1), 1)
  const image = openImage(output, { requireSidecar: true })
  t.after(image.close)
  for (const _ of image.verify());
  const pagesOf = ({ length, pagesOffset, present }: (typeof image.blocks)[number]) =>
    Array.from({ length: length / PAGE }, (_, page) => {
      const bytes = Buffer.alloc(PAGE)
      if (present.get(page)) readSync(image.fd, bytes, 0, PAGE, pagesOffset + page * PAGE)
      return bytes
    })
  const first = Buffer.from(bytesOf(1))
  first.set([7, 8], 0x1f * 128 + 0x7a)
  const last = Buffer.alloc(PAGE)
  last[0] = 4
  const zero = Buffer.alloc(PAGE)
  const nine = Buffer.from(bytesOf(9))
  assert.deepEqual(pagesOf(image.blocks[0]!), [
    first,
    zero,
    zero,
    nine,
    Buffer.from(bytesOf(5)),
    last,
    zero,
    zero,
  ])
  assert.deepEqual(pagesOf(image.blocks[1]!), [zero, zero])
  assert.equal(image.ramSectionId, ID)
})

test('inspect counts the records of a stream', (t) => {
  const { input } = files(t, streamOf(ITEMS))
  const report = inspectFile(input)
  assert.equal(report.kind, 'stream')
  assert.deepEqual(report.blocks[0], {
    ...{ name: 'ram', length: 8 * PAGE, pages: 8, presentPages: 4, zeroPages: 4 },
    records: { page: 2, zero: 3, xbzrle: 2, compressed: 1 },
  })
  assert.deepEqual(report.devices, [{ idstr: 'device', instance: 0, version: 1, id: 4, bytes: 7 }])
  assert.deepEqual(report.ramSection, { id: ID, version: 4, sections: 3 })
  assert.throws(() => inspectFile(input, { verify: true }), /no checksums/)
})

const page = (fields: Partial<Item>): readonly Item[] => [
  { kind: 'page', data: bytesOf(1), ...fields } as Item,
]
const REFUSED: Readonly<Record<string, readonly [Uint8Array, RegExp]>> = {
  'an image': [streamOf(ITEMS, { capabilities: ['mapped-ram'] }), /image already/],
  'RAM that is elsewhere': [
    streamOf(ITEMS, { capabilities: ['x-ignore-shared'] }),
    /RAM is not in this file/,
  ],
  'a block that does not exist': [streamOf(page({ blockName: 'x' })), /unknown RAM block/],
  'a first page without a block': [streamOf(page({})), /does not name its block/],
  'a page behind the end of its block': [
    streamOf(page({ blockName: 'rom', offset: 2 * PAGE })),
    /page outside of block rom/,
  ],
  'a delta that leaves the page': [
    streamOf([{ kind: 'xbzrle', blockName: 'ram', data: Uint8Array.of(0xff, 0x1f, 2, 7, 8) }]),
    /delta leaves the page/,
  ],
  'a compressed page that is too long': [
    streamOf([{ kind: 'compress', blockName: 'ram', data: deflateSync(new Uint8Array(5000)) }]),
    /compressed page/,
  ],
  'a compressed page that is too short': [
    streamOf([{ kind: 'compress', blockName: 'ram', data: deflateSync(new Uint8Array(4000)) }]),
    /another length/,
  ],
  'what is no stream': [Buffer.alloc(100), /not a migration stream/],
  nothing: [new Uint8Array(0), /ends inside/],
}

for (const [what, [stream, message]] of Object.entries(REFUSED)) {
  test(`refused, and nothing is left: ${what}`, async (t) => {
    const { directory, input, output } = files(t, stream)
    await assert.rejects(convertStream(input, output), (error) => {
      assert.match((error as Error).message, message)
      assert.ok((error as Error).message.startsWith(`${input}, offset `))
      return (error as { code?: string }).code === 'IMAGE'
    })
    assert.deepEqual(readdirSync(directory), ['saved'])
  })
}

test('a conversion can be cancelled; then nothing is left', async (t) => {
  const many = Array.from({ length: 200_000 }, (): Item => ({ kind: 'zero', blockName: 'ram' }))
  const sections = concat([
    streamOf([]).subarray(0, -DEVICE.length - 1 - 18 - 18),
    ...Array.from({ length: 40 }, () =>
      concat([
        encodeSectionPart(ID),
        ...many.slice(0, 5000).map(item),
        item({ kind: 'eos' }),
        encodeFooter(ID),
      ]),
    ),
  ])
  const { directory, input, output } = files(t, sections)
  const cancel = new AbortController()
  const converted = convertStream(input, output, { signal: cancel.signal, onProgress: () => cancel.abort() })
  await assert.rejects(converted, { code: 'CANCELLED' })
  assert.deepEqual(readdirSync(directory), ['saved'])
})

test('paths that cannot be used', async (t) => {
  const { directory, input } = files(t, streamOf(ITEMS))
  await assert.rejects(convertStream(join(directory, 'none'), join(directory, 'x')), { code: 'USAGE' })
  await assert.rejects(convertStream(input, join(directory, 'none', 'x')), { code: 'USAGE' })
  await assert.rejects(convertStream(input, input), { code: 'USAGE' })
  assert.throws(() => inspectFile(directory), { code: 'USAGE' })
})
