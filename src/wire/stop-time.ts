// When the guest was stopped, as a device record of its own in front of the guest's: so that the destination can say how
// long the guest stood still. Only between our own ends; QEMU would refuse the unknown section. Pure; any thread.

import { ProtocolError } from '../errors.js'
import { encodeDevice, readDeviceBody } from './device-sections.js'
import { readerOf } from './reader.js'
import { readFooter, readRecordType, readSectionHeader } from './sections.js'

const IDSTR = 'farfault/stop-time'
const SECTION_ID = 0x7fff_0000

/** @param realtimeUs CLOCK_REALTIME at the stop, µs. */
export function encodeStopTime(realtimeUs: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setFloat64(0, realtimeUs)
  return encodeDevice(SECTION_ID, IDSTR, 1, bytes)
}

/** Takes the record off the front of the device records, if it is there. */
export function splitStopTime(devices: Uint8Array): { stoppedAtUs: number | undefined; devices: Uint8Array } {
  const absent = { stoppedAtUs: undefined, devices }
  if (Buffer.from(devices.buffer, devices.byteOffset, Math.min(64, devices.length)).indexOf(IDSTR) < 0)
    return absent
  const reader = readerOf(devices, { ended: endedInside })
  if (readRecordType(reader) !== 'SECTION_FULL') return absent
  const { id, idstr } = readSectionHeader(reader, 'SECTION_FULL')
  if (idstr !== IDSTR) return absent
  const bytes = readDeviceBody(reader, idstr)
  readFooter(reader, id)
  if (bytes.length !== 8) return absent
  const stoppedAtUs = new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0)
  return { stoppedAtUs, devices: devices.subarray(reader.position) }
}

/** The records are all there, so an early end is not a lost connection but wrong bytes. */
function endedInside(offset: number, record: string): Error {
  return new ProtocolError('device sections end early', { offset, record })
}
