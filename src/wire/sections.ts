// The outer layer of a migration stream: header, configuration, and the records that follow. Pure; any thread.
//
//   header · configuration · ( COMMAND | SECTION_… header · body · footer )* · EOF · [VMDESCRIPTION]
//
// Section ids are chosen by the sender. A receiver learns them from SECTION_START and SECTION_FULL.
// Source: QEMU migration/savevm.c, `qemu_savevm_state_header`, `save_section_header`, `qemu_loadvm_state_main`.

import { LIMITS } from '../limits.js'
import { concat, hex, viewOf } from './bytes.js'
import {
  type Codec,
  constant,
  counted,
  encode,
  idstr,
  many,
  raw,
  record,
  str8,
  text,
  u8,
  u32,
  type Value,
} from './codec.js'
import type { StreamReader } from './reader.js'
import { refuseAt } from './slice.js'

const MAGIC = 0x51_45_56_4d // "QEVM"
const VERSION = 3

/** First byte of everything in the stream. */
export const RECORD_IDS = {
  EOF: 0x00,
  SECTION_START: 0x01,
  SECTION_PART: 0x02,
  SECTION_END: 0x03,
  SECTION_FULL: 0x04,
  SUBSECTION: 0x05,
  VMDESCRIPTION: 0x06,
  CONFIGURATION: 0x07,
  COMMAND: 0x08,
  SECTION_FOOTER: 0x7e,
} as const

/** What may stand where a record begins. The other ids only occur inside of records. */
export type RecordType = Exclude<keyof typeof RECORD_IDS, 'SUBSECTION' | 'CONFIGURATION' | 'SECTION_FOOTER'>

const RECORD_TYPES: ReadonlyMap<number, RecordType> = new Map(
  (
    [
      'EOF',
      'SECTION_START',
      'SECTION_PART',
      'SECTION_END',
      'SECTION_FULL',
      'VMDESCRIPTION',
      'COMMAND',
    ] as const
  ).map((name) => [RECORD_IDS[name], name]),
)

/** Header of SECTION_START and SECTION_FULL, after the type byte. */
const namedHeader = record({ id: u32, idstr, instance: u32, version: u32 })
export type NamedSection = Value<typeof namedHeader>

/** Header of SECTION_PART and SECTION_END, after the type byte; also of the footer. */
const idHeader = record({ id: u32 })
export type SectionId = Value<typeof idHeader>

/** The last byte of what is migrated; only a VMDESCRIPTION may follow. */
export const END_OF_STREAM: Uint8Array = Uint8Array.of(RECORD_IDS.EOF)

function encodeRecord<T>(id: number, codec: Codec<T>, value: T): Uint8Array {
  const bytes = new Uint8Array(1 + codec.size(value))
  bytes[0] = id
  codec.write(viewOf(bytes), 1, value)
  return bytes
}

/** Magic and version: 8 bytes, once per migration. Not repeated when a migration is recovered. */
export function encodeHeader(): Uint8Array {
  return encode(many(u32), [MAGIC, VERSION])
}

/** Errors: `ProtocolError` for anything but QEMU's magic and version 3. */
export function readHeader(reader: StreamReader): void {
  const offset = reader.streamOffset
  const magic = reader.u32('stream header')
  if (magic !== MAGIC) refuseAt(offset, 'stream header', 'not a migration stream', hex(MAGIC), hex(magic))
  const version = reader.u32('stream header')
  if (version !== VERSION) {
    refuseAt(offset + 4, 'stream header', 'unsupported stream version', `${VERSION}`, `${version}`)
  }
}

export interface Configuration {
  /** Machine type with its version resolved, `pc-q35-10.0`. QEMU accepts a prefix of its own name. */
  readonly machine: string
  /** Binary logarithm of the target page size; only when it is not the smallest of the CPU family. Never for x86. */
  readonly targetPageBits?: number
  /** Capabilities that both ends must agree on, when any is on: `x-ignore-shared`, `mapped-ram`. */
  readonly capabilities?: readonly string[]
  /** 16 bytes; with the capability `validate-uuid`. */
  readonly uuid?: Uint8Array
}

const machineName = record({
  type: constant(u8, RECORD_IDS.CONFIGURATION),
  machine: text(u32, 1, LIMITS.machineNameBytesMax),
})

/** Optional parts, in the order of the stream. All have version 1. */
const SUBSECTIONS = {
  targetPageBits: { name: 'configuration/target-page-bits', body: u32 },
  capabilities: { name: 'configuration/capabilities', body: counted(str8, LIMITS.capabilitiesMax) },
  uuid: { name: 'configuration/uuid', body: raw(16) },
} as const

const CONFIGURATION = 'configuration section'

type Subsection = keyof typeof SUBSECTIONS
const ORDER = Object.keys(SUBSECTIONS) as readonly Subsection[]

const subsectionHeader = record({
  type: constant(u8, RECORD_IDS.SUBSECTION),
  name: str8,
  version: constant(u32, 1),
})

export function encodeConfiguration(configuration: Configuration): Uint8Array {
  const parts = [encode(machineName, configuration)]
  for (const key of ORDER) {
    const value = configuration[key]
    if (value === undefined) continue
    const { name, body } = SUBSECTIONS[key]
    parts.push(encode(subsectionHeader, { name }), encode(body as Codec<unknown>, value))
  }
  return concat(parts)
}

/**
 * Looks one byte past the section, as there is no other way to see its end.
 * Errors: `ProtocolError` when it is missing, and for subsections that are unknown or out of order.
 */
export function readConfiguration(reader: StreamReader): Configuration {
  const first = reader.bytes[reader.need(1, CONFIGURATION)]!
  if (first !== RECORD_IDS.CONFIGURATION) {
    refuseAt(reader.streamOffset, CONFIGURATION, 'missing', hex(RECORD_IDS.CONFIGURATION), hex(first))
  }
  const found: { -readonly [K in Subsection]?: unknown } = {}
  const { machine } = reader.read(machineName, CONFIGURATION)
  let known = ORDER
  while (reader.bytes[reader.need(1, CONFIGURATION)] === RECORD_IDS.SUBSECTION) {
    const offset = reader.streamOffset
    const { name } = reader.read(subsectionHeader, CONFIGURATION)
    const at = known.findIndex((key) => SUBSECTIONS[key].name === name)
    if (at < 0) refuseAt(offset, CONFIGURATION, 'unknown or repeated subsection', undefined, name)
    const key = known[at]!
    found[key] = reader.read(SUBSECTIONS[key].body as Codec<unknown>, name)
    known = known.slice(at + 1)
  }
  return { machine, ...found } as Configuration
}

/** Type byte and header; the body and a footer follow. */
export function encodeSectionStart(section: NamedSection): Uint8Array {
  return encodeRecord(RECORD_IDS.SECTION_START, namedHeader, section)
}

/** Type byte and header; a body and a footer follow. */
export function encodeSectionPart(id: number): Uint8Array {
  return encodeRecord(RECORD_IDS.SECTION_PART, idHeader, { id })
}

/** Type byte and header; the last body and a footer follow. */
export function encodeSectionEnd(id: number): Uint8Array {
  return encodeRecord(RECORD_IDS.SECTION_END, idHeader, { id })
}

/** A whole section: type byte, header, body, footer. */
export function encodeSectionFull(section: NamedSection, body: Uint8Array): Uint8Array {
  const header = encodeRecord(RECORD_IDS.SECTION_FULL, namedHeader, section)
  return concat([header, body, encodeFooter(section.id)])
}

export function encodeFooter(id: number): Uint8Array {
  return encodeRecord(RECORD_IDS.SECTION_FOOTER, idHeader, { id })
}

/** Errors: `ProtocolError` for a byte that does not begin a record. */
export function readRecordType(reader: StreamReader): RecordType {
  const byte = reader.u8('record type')
  const type = RECORD_TYPES.get(byte)
  if (type !== undefined) return type
  return refuseAt(reader.streamOffset - 1, 'record type', 'unknown record type', undefined, hex(byte))
}

/** What follows the type byte of a section. */
export function readSectionHeader(reader: StreamReader, type: 'SECTION_START' | 'SECTION_FULL'): NamedSection
export function readSectionHeader(reader: StreamReader, type: 'SECTION_PART' | 'SECTION_END'): SectionId
export function readSectionHeader(reader: StreamReader, type: RecordType): NamedSection | SectionId {
  // Around every page that a guest waits for: no codec, no text made.
  if (type === 'SECTION_PART') return { id: reader.u32('SECTION_PART') }
  const named = type === 'SECTION_START' || type === 'SECTION_FULL'
  return named ? reader.read(namedHeader, `${type} header`) : reader.read(idHeader, `${type} header`)
}

/** Errors: `ProtocolError` when there is no footer, or the footer of another section. */
export function readFooter(reader: StreamReader, id: number): void {
  const offset = reader.streamOffset
  const byte = reader.u8('section footer')
  if (byte !== RECORD_IDS.SECTION_FOOTER) {
    refuseAt(offset, 'section footer', 'missing section footer', hex(RECORD_IDS.SECTION_FOOTER), hex(byte))
  }
  const got = reader.u32('section footer')
  if (got !== id) refuseAt(offset + 1, 'section footer', 'footer of another section', `${id}`, `${got}`)
}

/** Type byte, length and text of the description of the device sections; `json` is not interpreted. */
export function encodeVmDescription(json: Uint8Array): Uint8Array {
  return concat([encodeRecord(RECORD_IDS.VMDESCRIPTION, u32, json.length), json])
}

/** What follows the type byte of a VMDESCRIPTION. */
export function readVmDescription(reader: StreamReader): Uint8Array {
  const length = reader.u32('VMDESCRIPTION')
  if (length > LIMITS.vmDescriptionBytesMax) {
    const most = `at most ${LIMITS.vmDescriptionBytesMax}`
    refuseAt(reader.streamOffset - 4, 'VMDESCRIPTION', 'description too long', most, `${length}`)
  }
  const json = new Uint8Array(length)
  reader.copyOut(json, 'VMDESCRIPTION')
  return json
}
