// Device state of our guests: each has one device, saved as one SECTION_FULL record. Runs on the guest thread.

import { decodeDevices, encodeDevice } from '../wire/device-sections.js'

/** Section id in the stream; RAM has a lower one. */
const SECTION_ID = 100

export interface DeviceKind {
  readonly idstr: string
  /** Of the layout of the bytes; older ones are taken, newer ones refused. */
  readonly version: number
}

/** The whole record. */
export function encodeDeviceState({ idstr, version }: DeviceKind, bytes: Uint8Array): Uint8Array {
  return encodeDevice(SECTION_ID, idstr, version, bytes)
}

/** The bytes of the one record that `sections` must hold. Throws ProtocolError. */
export function decodeDeviceState(sections: Uint8Array, { idstr, version }: DeviceKind): Uint8Array {
  return decodeDevices(sections, { [idstr]: version })[0]!.bytes
}
