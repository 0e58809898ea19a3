import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ChannelError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { concat } from './bytes.js'
import { readerOf } from './reader.js'
import {
  type Configuration,
  END_OF_STREAM,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionEnd,
  encodeSectionFull,
  encodeSectionPart,
  encodeSectionStart,
  encodeVmDescription,
  RECORD_IDS,
  readConfiguration,
  readFooter,
  readHeader,
  readRecordType,
  readSectionHeader,
  readVmDescription,
} from './sections.js'

const fromHex = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'))
const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const RAM = { id: 2, idstr: 'ram', instance: 0, version: 4 }

test('header: magic and version', () => {
  assert.equal(hexOf(encodeHeader()), '5145564d00000003')
  readHeader(readerOf(encodeHeader()))
  const cases: readonly [string, number][] = [
    ['5145564c 00000003', 0],
    ['5145564d 00000002', 4],
    ['5145564d 00000004', 4],
  ]
  for (const [hex, offset] of cases) {
    assert.throws(() => readHeader(readerOf(fromHex(hex))), { code: 'PROTOCOL', offset }, hex)
  }
})

const CONFIGURATIONS: readonly Configuration[] = [
  { machine: 'pc-q35-10.0' },
  { machine: 'virt', targetPageBits: 14 },
  { machine: 'pc', capabilities: ['x-ignore-shared', 'mapped-ram'] },
  { machine: 'pc', uuid: Uint8Array.from({ length: 16 }, (_, i) => i) },
  { machine: 'x', targetPageBits: 12, capabilities: [], uuid: new Uint8Array(16) },
]

test('configuration: what is encoded is read, and nothing behind it is consumed', () => {
  for (const configuration of CONFIGURATIONS) {
    const bytes = encodeConfiguration(configuration)
    const reader = readerOf(concat([bytes, END_OF_STREAM]))
    assert.deepEqual(readConfiguration(reader), configuration)
    assert.equal(reader.position, bytes.length)
  }
})

test('configuration: errors', () => {
  const name = hexOf(Buffer.from('configuration/uuid'))
  const uuid = `05 12 ${name} 00000001 ${'00'.repeat(16)}`
  const cases: readonly [string, string, number][] = [
    ['missing', '08 0001 0000', 0],
    ['empty name', '07 00000000', 1],
    ['name over the bound', '07 00000100', 1],
    ['name far over the bound', '07 ffffffff', 1],
    ['unknown subsection', '07 00000001 61 05 01 61 00000001', 6],
    ['subsection twice', `07 00000001 61 ${uuid} ${uuid}`, 46],
    ['newer subsection', `07 00000001 61 05 12 ${name} 00000002`, 26],
    [
      'too many capabilities',
      `07 00000001 61 05 1a ${hexOf(Buffer.from('configuration/capabilities'))} 00000001 7fffffff`,
      38,
    ],
  ]
  for (const [what, hex, offset] of cases) {
    assert.throws(() => readConfiguration(readerOf(fromHex(`${hex} 00`))), { code: 'PROTOCOL', offset }, what)
  }
})

test('section headers and footers, byte for byte', () => {
  assert.equal(hexOf(encodeSectionStart(RAM)), '01000000020372616d0000000000000004')
  assert.equal(hexOf(encodeSectionPart(2)), '0200000002')
  assert.equal(hexOf(encodeSectionEnd(2)), '0300000002')
  assert.equal(hexOf(encodeFooter(2)), '7e00000002')
  assert.equal(
    hexOf(encodeSectionFull({ id: 9, idstr: 'a', instance: 1, version: 2 }, Uint8Array.of(255))),
    '0400000009016100000001 00000002ff7e00000009'.replace(' ', ''),
  )
})

test('section headers are read by record type', () => {
  const reader = readerOf(
    concat([
      encodeSectionStart(RAM),
      encodeSectionPart(7),
      encodeSectionEnd(8),
      encodeFooter(8),
      END_OF_STREAM,
    ]),
  )
  assert.equal(readRecordType(reader), 'SECTION_START')
  assert.deepEqual(readSectionHeader(reader, 'SECTION_START'), RAM)
  assert.equal(readRecordType(reader), 'SECTION_PART')
  assert.deepEqual(readSectionHeader(reader, 'SECTION_PART'), { id: 7 })
  assert.equal(readRecordType(reader), 'SECTION_END')
  assert.deepEqual(readSectionHeader(reader, 'SECTION_END'), { id: 8 })
  readFooter(reader, 8)
  assert.equal(readRecordType(reader), 'EOF')
  assert(reader.atEnd())
})

test('only seven bytes begin a record', () => {
  const legal = new Set<number>([0, 1, 2, 3, 4, RECORD_IDS.VMDESCRIPTION, RECORD_IDS.COMMAND])
  for (let byte = 0; byte < 256; byte++) {
    const read = () => readRecordType(readerOf(Uint8Array.of(byte), { offset: 40 }))
    if (legal.has(byte)) read()
    else assert.throws(read, { code: 'PROTOCOL', offset: 40 })
  }
})

test('bad headers and footers', () => {
  assert.throws(() => readSectionHeader(readerOf(fromHex('00000001 00')), 'SECTION_FULL'), {
    code: 'PROTOCOL',
    offset: 4,
  })
  assert.throws(() => readSectionHeader(readerOf(fromHex('00000001 0361')), 'SECTION_FULL'), ChannelError)
  assert.throws(() => readFooter(readerOf(fromHex('00 00000001')), 1), { code: 'PROTOCOL', offset: 0 })
  assert.throws(() => readFooter(readerOf(fromHex('7e 00000002')), 1), {
    code: 'PROTOCOL',
    offset: 1,
    got: '2',
  })
})

test('description of the devices: kept as bytes, bounded', () => {
  const json = new TextEncoder().encode('{"devices":[]}')
  const reader = readerOf(encodeVmDescription(json))
  assert.equal(readRecordType(reader), 'VMDESCRIPTION')
  assert.deepEqual(readVmDescription(reader), json)
  const tooLong = new Uint8Array(4)
  new DataView(tooLong.buffer).setUint32(0, LIMITS.vmDescriptionBytesMax + 1)
  assert.throws(() => readVmDescription(readerOf(tooLong)), { code: 'PROTOCOL', offset: 0 })
})
