// Takes the records behind the RAM of a saved stream apart: device sections, the end, the description. Pure; any thread.
//
// Bodies of QEMU's devices do not say how long they are. Three sources do, and the first that is there is believed:
// the description at the end; a length at the front of the body (our own guests); the footer, which repeats the id of the
// section and stands before something that can begin a record. The last is a guess, which no stream seen has led astray.

import { ImageError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { viewOf } from '../wire/bytes.js'
import { readCommand } from '../wire/messages.js'
import { readerOf, type StreamReader } from '../wire/reader.js'
import {
  type NamedSection,
  RECORD_IDS,
  readFooter,
  readRecordType,
  readSectionHeader,
  readVmDescription,
} from '../wire/sections.js'
import { refuseAt } from '../wire/slice.js'
import { describedBodyBytes, findVmDescription, readDescribedSections } from '../wire/vm-description.js'

/** Where a device's SECTION_FULL lies in the device records. */
export interface DeviceSpan extends NamedSection {
  /** Index of the record's type byte in the device records. */
  readonly at: number
  /** Index of the body, and its length in bytes. */
  readonly bodyAt: number
  readonly bodyBytes: number
}

/** What stands behind the RAM of a stream. */
export interface StreamTail {
  /** SECTION_FULL records, verbatim and in order. */
  readonly devices: Uint8Array
  readonly sections: readonly DeviceSpan[]
  /** JSON, as QEMU wrote it. Undefined: there is none. */
  readonly vmDescription: Uint8Array | undefined
}

export interface SplitOptions {
  /** File or stream offset of `bytes`, for errors. */
  readonly offset?: number
  /** For errors. */
  readonly path?: string
  /** JSON that is not at the end of `bytes`. */
  readonly vmDescription?: Uint8Array
}

const FOOTER_BYTES = 5

/**
 * `bytes`: SECTION_FULL records, perhaps commands between them, then perhaps EOF and a description. Nothing may follow.
 * Errors: `ProtocolError`, or `ImageError` where the bytes end early; both with the offset.
 */
export function splitDevices(bytes: Uint8Array, options: SplitOptions = {}): StreamTail {
  const { offset = 0, path = 'device sections' } = options
  const jsonAt = findVmDescription(bytes)
  const json = jsonAt === undefined ? options.vmDescription : bytes.subarray(jsonAt)
  const described = json === undefined ? undefined : readDescribedSections(json, offset + (jsonAt ?? 0))
  const lengthOf = described === undefined ? undefined : describedBodyBytes(described)
  const reader = readerOf(bytes, {
    offset,
    ended: (at, record) => new ImageError(`ends inside ${record}`, path, at),
  })
  const sections: DeviceSpan[] = []
  const parts: Uint8Array[] = []
  let length = 0
  while (!reader.atEnd()) {
    const start = reader.position
    const type = readRecordType(reader)
    if (type === 'COMMAND') {
      readCommand(reader)
      continue
    }
    if (type === 'EOF') {
      readEnd(reader, jsonAt !== undefined)
      break
    }
    if (type !== 'SECTION_FULL')
      refuseAt(offset + start, type, 'unexpected behind the RAM', 'a device section', type)
    const section = readSectionHeader(reader, 'SECTION_FULL')
    const bodyAt = reader.position
    const bodyBytes = lengthOf?.(section) ?? guessBodyBytes(bytes, bodyAt, section.id, offset)
    reader.skip(bodyBytes, `device section ${section.idstr}/${section.instance}`)
    readFooter(reader, section.id)
    sections.push({ ...section, at: length, bodyAt: length + bodyAt - start, bodyBytes })
    parts.push(bytes.subarray(start, reader.position))
    length += reader.position - start
  }
  if (described !== undefined && described.length !== sections.length)
    refuseAt(
      offset + (jsonAt ?? 0),
      'VMDESCRIPTION',
      'other sections than described',
      `${described.length}`,
      `${sections.length}`,
    )
  return { devices: Buffer.concat(parts), sections, vmDescription: json }
}

/** `described`: the description was found from the end, where only a damaged one is missed. */
function readEnd(reader: StreamReader, described: boolean): void {
  if (reader.atEnd()) return
  const offset = reader.streamOffset
  const type = readRecordType(reader)
  if (type !== 'VMDESCRIPTION') refuseAt(offset, type, 'more behind the end', 'VMDESCRIPTION', type)
  if (!described) refuseAt(offset, type, 'damaged description', 'a JSON object up to the end')
  readVmDescription(reader)
  if (!reader.atEnd()) refuseAt(reader.streamOffset, type, 'more behind the end', 'no more bytes', 'some')
}

function guessBodyBytes(bytes: Uint8Array, bodyAt: number, id: number, offset: number): number {
  const view = viewOf(bytes)
  const isFooter = (at: number): boolean =>
    at + FOOTER_BYTES <= bytes.length &&
    bytes[at] === RECORD_IDS.SECTION_FOOTER &&
    view.getUint32(at + 1) === id
  if (bodyAt + 4 <= bytes.length) {
    const own = 4 + view.getUint32(bodyAt)
    if (isFooter(bodyAt + own)) return own
  }
  for (let at = bytes.indexOf(RECORD_IDS.SECTION_FOOTER, bodyAt); at >= 0; ) {
    if (isFooter(at) && canBeginRecord(bytes, view, at + FOOTER_BYTES)) return at - bodyAt
    at = bytes.indexOf(RECORD_IDS.SECTION_FOOTER, at + 1)
  }
  return refuseAt(offset + bodyAt, 'device section', 'its end cannot be found', `a footer with id ${id}`)
}

const NEXT_COMMAND_MAX = 32

/** Can what stands at `at` follow a section? */
function canBeginRecord(bytes: Uint8Array, view: DataView, at: number): boolean {
  const left = bytes.length - at
  if (left === 0) return true
  switch (bytes[at]) {
    case RECORD_IDS.EOF:
      return left === 1 || bytes[at + 1] === RECORD_IDS.VMDESCRIPTION
    case RECORD_IDS.COMMAND:
      return left >= 5 && view.getUint16(at + 1) < NEXT_COMMAND_MAX
    case RECORD_IDS.SECTION_FULL: {
      const nameBytes = left >= 6 ? bytes[at + 5]! : 0
      const name = bytes.subarray(at + 6, at + 6 + nameBytes)
      return nameBytes > 0 && name.length === nameBytes && name.every((byte) => byte >= 0x20 && byte < 0x7f)
    }
    default:
      return false
  }
}

/** A description for streams that came without one, in the form that says no more than the lengths. */
export function describeDevices(sections: readonly DeviceSpan[]): Uint8Array {
  const devices = sections.map(({ idstr, instance, bodyBytes }) => ({
    name: idstr,
    instance_id: instance,
    size: bodyBytes,
    fields: [{ name: 'data', size: bodyBytes, type: 'buffer' }],
  }))
  return new TextEncoder().encode(JSON.stringify({ page_size: 4096, devices }))
}

/** Most bytes that can stand behind the RAM. */
export const TAIL_BYTES_MAX = LIMITS.packageBytesMax + LIMITS.vmDescriptionBytesMax
