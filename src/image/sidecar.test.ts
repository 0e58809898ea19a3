import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ImageError } from '../errors.js'
import { encodeSidecar, parseSidecar, type Sidecar } from './sidecar.js'

const FIELDS: Omit<Sidecar, 'version' | 'chunkBytes'> = {
  machine: 'pc-q35-10.0',
  qemu: '10.0.2',
  made: { how: 'park', by: 'farfault 0.1.0', at: '2026-01-31T12:00:00.000Z', from: null },
  fileBytes: 1234,
  metadataCrc32: '0123abcd',
  blocks: [
    { name: 'pc.ram', length: 8192, pageSize: 4096, pagesOffset: 4096, presentPages: 1, xxh64: '89abcdef' },
    { name: 'pc.rom', length: 4096, pageSize: 4096, pagesOffset: 16384, presentPages: 0, xxh64: '' },
  ],
}

test('a sidecar is read as it was written', () => {
  assert.deepEqual(parseSidecar(encodeSidecar(FIELDS), 'vm.img.json'), {
    version: 2,
    chunkBytes: 65536,
    ...FIELDS,
  })
})

/** Sound in itself, so that only the check of the field can refuse it. */
const WRONG: Readonly<Record<string, object>> = {
  machine: { machine: '' },
  qemu: { qemu: 10 },
  'made.how': { made: { ...FIELDS.made, how: null } },
  'made.at': { made: { ...FIELDS.made, at: 'yesterday' } },
  'made.who': { made: { ...FIELDS.made, who: 'me' } },
  fileBytes: { fileBytes: 1.5 },
  metadataCrc32: { metadataCrc32: '0123ABCD' },
  blocks: { blocks: {} },
  'blocks[1]': { blocks: [FIELDS.blocks[0], null] },
  'blocks[1].length': { blocks: [FIELDS.blocks[0], { ...FIELDS.blocks[1], length: 100 }] },
  'blocks[1].pageSize': { blocks: [FIELDS.blocks[0], { ...FIELDS.blocks[1], pageSize: 8192 }] },
  'blocks[1].xxh64': { blocks: [FIELDS.blocks[0], { ...FIELDS.blocks[1], xxh64: '89abcde' }] },
}

for (const [field, change] of Object.entries(WRONG)) {
  test(`refused by its name: ${field}`, () => {
    const text = encodeSidecar({ ...FIELDS, ...change } as typeof FIELDS)
    assert.throws(
      () => parseSidecar(text, 'vm.img.json'),
      (error) => {
        assert(error instanceof ImageError)
        assert.ok(error.message.includes(`sidecar field ${field}: `), error.message)
        return error.file === 'vm.img.json'
      },
    )
  })
}

test('text that is no JSON is refused', () => {
  const text = encodeSidecar(FIELDS).replace('"qemu":', '"qemu"!')
  assert.throws(() => parseSidecar(text, 'x'), /sidecar is not JSON/)
})

test('a newer version is refused', () => {
  const text = encodeSidecar(FIELDS).replace('"version": 2', '"version": 3')
  assert.throws(
    () => parseSidecar(text, 'x'),
    /sidecar field version: expected 2 \(another farfault wrote it: park again.*, got 3/,
  )
})
