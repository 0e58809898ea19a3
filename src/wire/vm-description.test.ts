import assert from 'node:assert/strict'
import { test } from 'node:test'
import { concat } from './bytes.js'
import { END_OF_STREAM, encodeVmDescription } from './sections.js'
import { describedBodyBytes, findVmDescription, readDescribedSections } from './vm-description.js'

const bytesOf = (value: unknown) => new TextEncoder().encode(JSON.stringify(value))

const DEVICES = [
  { name: 'slirp', instance_id: 0, size: 77, fields: [{ name: 'data', size: 77, type: 'buffer' }] },
  {
    name: 'cpu',
    instance_id: 1,
    vmsd_name: 'cpu',
    version: 12,
    fields: [
      { name: 'regs', array_len: 16, type: 'uint64', size: 8 },
      { name: 'eip', type: 'uint64', size: 8 },
      { name: 'fpu', type: 'struct', struct: { fields: [{ name: 'inner', size: 500 }] }, size: 20 },
    ],
    subsections: [{ vmsd_name: 'cpu/msr', version: 1, fields: [{ name: 'msr', type: 'uint64', size: 8 }] }],
  },
]

test('sizes: arrays count once an element, structs once, subsections with their header', () => {
  const sections = readDescribedSections(bytesOf({ page_size: 4096, devices: DEVICES }))
  assert.deepEqual(sections, [
    { idstr: 'slirp', instance: 0, bodyBytes: 77 },
    { idstr: 'cpu', instance: 1, bodyBytes: 16 * 8 + 8 + 20 + (1 + 1 + 7 + 4 + 8) },
  ])
})

test('the description is found at the end of a stream, and nowhere else', () => {
  const record = encodeVmDescription(bytesOf({ devices: [] }))
  const front = concat([Uint8Array.of(1, 2, 3), record])
  const stream = concat([front, END_OF_STREAM, record])
  assert.equal(findVmDescription(stream), front.length + 1 + 5)
  assert.equal(findVmDescription(concat([stream, END_OF_STREAM])), undefined)
  assert.equal(findVmDescription(record), undefined)
  assert.equal(findVmDescription(new Uint8Array(0)), undefined)
})

test('sections must come as they are described', () => {
  const next = describedBodyBytes(readDescribedSections(bytesOf({ devices: DEVICES })))
  const section = (idstr: string, instance: number) => ({ id: 1, idstr, instance, version: 1 })
  assert.equal(next(section('slirp', 0)), 77)
  assert.throws(() => next(section('cpu', 0)), { code: 'PROTOCOL', expected: 'cpu/1' })
  assert.throws(() => next(section('cpu', 1)), { code: 'PROTOCOL', expected: 'no more sections' })
})

test('what is no description is refused', () => {
  const cases: unknown[] = [
    [],
    null,
    { devices: {} },
    { devices: [null] },
    { devices: [{ instance_id: 0, fields: [] }] },
    { devices: [{ name: 'a', fields: [] }] },
    { devices: [{ name: 'a', instance_id: 0 }] },
    { devices: [{ name: 'a', instance_id: 0, fields: [{ size: -1 }] }] },
    { devices: [{ name: 'a', instance_id: 0, fields: [], subsections: [{ fields: [] }] }] },
  ]
  for (const value of cases) {
    assert.throws(() => readDescribedSections(bytesOf(value)), { code: 'PROTOCOL' }, JSON.stringify(value))
  }
  assert.throws(() => readDescribedSections(Uint8Array.of(0x7b)), { code: 'PROTOCOL' })
})
