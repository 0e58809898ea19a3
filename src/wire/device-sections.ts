// Device state of our own guests: SECTION_FULL records whose body is u32 length · bytes. Pure; any thread.
//
// The bodies of QEMU's devices have no length, so only QEMU can take them apart. Ours can be walked by anyone.

import assert from 'node:assert/strict'
import { ProtocolError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { concat } from './bytes.js'
import { encode, u32 } from './codec.js'
import { readerOf, type StreamReader } from './reader.js'
import { encodeSectionFull, readFooter, readRecordType, readSectionHeader } from './sections.js'
import { refuseAt } from './slice.js'

const RECORD = 'device sections'

/** State of one device. */
export interface DeviceSection {
  /** Section id: unique in the stream, chosen by the sender. */
  readonly id: number
  readonly idstr: string
  /** Of the layout of `bytes`. A receiver takes its own version and older ones. */
  readonly version: number
  readonly bytes: Uint8Array
}

/** The whole record: type byte, header, body, footer. */
export function encodeDevice(id: number, idstr: string, version: number, bytes: Uint8Array): Uint8Array {
  assert(bytes.length <= LIMITS.packageBytesMax, `device state of ${bytes.length} bytes is too long`)
  return encodeSectionFull({ id, idstr, instance: 0, version }, encodeDeviceBody(bytes))
}

export function encodeDeviceBody(bytes: Uint8Array): Uint8Array {
  return concat([encode(u32, bytes.length), bytes])
}

/** Body of one device; a copy. Errors: `ProtocolError` when it is over the bound of a package. */
export function readDeviceBody(reader: StreamReader, idstr: string): Uint8Array {
  const length = reader.u32(idstr)
  if (length > LIMITS.packageBytesMax) {
    const most = `at most ${LIMITS.packageBytesMax}`
    refuseAt(reader.streamOffset - 4, idstr, 'device state too long', most, `${length}`)
  }
  const bytes = new Uint8Array(length)
  reader.copyOut(bytes, idstr)
  return bytes
}

/**
 * Takes the records of a package apart. `known`: idstr of each device that the guest has, and the newest version that it
 * can take. Each must be there once. Errors: `ProtocolError` (offsets are from the start of `sections`).
 */
export function decodeDevices(
  sections: Uint8Array,
  known: Readonly<Record<string, number>>,
): readonly DeviceSection[] {
  const reader = readerOf(sections, { ended: endedInside })
  const devices: DeviceSection[] = []
  const missing = new Map(Object.entries(known))
  while (!reader.atEnd()) {
    const device = readDevice(reader, missing)
    missing.delete(device.idstr)
    devices.push(device)
  }
  const [absent] = missing.keys()
  if (absent !== undefined) refuseAt(sections.length, RECORD, 'device section missing', absent, 'the end')
  return devices
}

function readDevice(reader: StreamReader, known: ReadonlyMap<string, number>): DeviceSection {
  const offset = reader.streamOffset
  const type = readRecordType(reader)
  if (type !== 'SECTION_FULL') return refuseAt(offset, RECORD, 'not a device section', undefined, type)
  const { id, idstr, instance, version } = readSectionHeader(reader, type)
  const newest = known.get(idstr)
  if (newest === undefined || instance !== 0) {
    return refuseAt(offset, RECORD, 'unknown or repeated device', undefined, `${idstr}/${instance}`)
  }
  if (version > newest) {
    refuseAt(offset, idstr, 'device state is of a newer version', `at most ${newest}`, `${version}`)
  }
  const bytes = readDeviceBody(reader, idstr)
  readFooter(reader, id)
  return { id, idstr, version, bytes }
}

/** The package is all there, so an early end is not a lost connection but wrong bytes. */
function endedInside(offset: number, record: string): Error {
  return new ProtocolError('device sections end early', { offset, record })
}
