// What is inside of PACKAGED: the command to listen, the device state, the command to run. Pure; any thread.
//
//   LISTEN · [PING…] · SECTION_FULL… · [PING…] · RUN
//
// QEMU's device bodies have no lengths, so the sections between the commands are kept as bytes: only their first byte
// and their last footer can be told. That is also why the commands at the end are looked for from the end.
// Source: QEMU migration/migration.c, `postcopy_start`; migration/savevm.c, `loadvm_handle_cmd_packaged`.

import { ProtocolError } from '../errors.js'
import { concat, viewOf } from './bytes.js'
import { type Command, encodeCommand, readCommand } from './messages.js'
import { readerOf, type StreamReader } from './reader.js'
import { RECORD_IDS } from './sections.js'
import { refuseAt } from './slice.js'

const LISTEN = encodeCommand({ name: 'POSTCOPY_LISTEN' })
const RUN = encodeCommand({ name: 'POSTCOPY_RUN' })
const PING_BYTES = encodeCommand({ name: 'PING', value: 0 }).length
const FOOTER_BYTES = 5

export interface Package {
  /** SECTION_FULL records, verbatim. */
  readonly devices: Uint8Array
  /** Values to answer with PONG, in the order of the package. */
  readonly pings: readonly number[]
}

/** The bytes that follow a PACKAGED command. `ping`: QEMU sends 3. */
export function encodePackage(content: { readonly devices: Uint8Array; readonly ping?: number }): Uint8Array {
  const { devices, ping } = content
  return concat([
    LISTEN,
    devices,
    ping === undefined ? new Uint8Array(0) : encodeCommand({ name: 'PING', value: ping }),
    RUN,
  ])
}

/**
 * The inverse. `devices` is a part of `bytes`, not a copy. `offset`: stream offset of `bytes`, for errors.
 * Errors: `ProtocolError` when LISTEN is not first or RUN not last, for other commands than PING between them, and when
 * what is between them cannot be sections.
 */
export function splitPackage(bytes: Uint8Array, offset = 0): Package {
  const reader = readerOf(bytes, { offset, ended: endedInside })
  expectCommand(reader, 'POSTCOPY_LISTEN')
  const leading: number[] = []
  while (reader.bytes[reader.need(1, RECORD)] === RECORD_IDS.COMMAND) {
    const command = readCommandRecord(reader)
    // A package without devices: LISTEN and RUN alone.
    if (command.name === 'POSTCOPY_RUN' && reader.atEnd())
      return { devices: new Uint8Array(0), pings: leading }
    if (command.name !== 'PING') refuse(reader, 'command not legal in a package', 'PING', command.name)
    leading.push(command.value)
  }
  const start = reader.position
  const trailing: number[] = []
  let end = bytes.length - RUN.length
  expectCommand(
    readerOf(bytes.subarray(Math.max(start, end)), { offset: offset + end, ended: endedInside }),
    'POSTCOPY_RUN',
  )
  for (
    let value = pingBefore(bytes, start, end);
    value !== undefined;
    value = pingBefore(bytes, start, end)
  ) {
    trailing.unshift(value)
    end -= PING_BYTES
  }
  checkSections(reader, start, end)
  return { devices: bytes.subarray(start, end), pings: [...leading, ...trailing] }
}

const RECORD = 'package'

function readCommandRecord(reader: StreamReader): Command {
  const type = reader.u8(RECORD)
  if (type !== RECORD_IDS.COMMAND) refuse(reader, 'not a command', `${RECORD_IDS.COMMAND}`, `${type}`)
  return readCommand(reader)
}

function expectCommand(reader: StreamReader, name: Command['name']): void {
  const command = readCommandRecord(reader)
  if (command.name !== name) refuse(reader, 'package has another order', name, command.name)
}

/**
 * Value of the PING that ends at `end`. A section cannot look like one: five bytes before its end stands the type byte
 * of its footer, and in a PING the last byte of the length.
 */
function pingBefore(bytes: Uint8Array, start: number, end: number): number | undefined {
  const at = end - PING_BYTES
  if (at < start) return undefined
  const view = viewOf(bytes)
  const isPing = PING_HEAD.every((byte, i) => bytes[at + i] === byte)
  return isPing ? view.getUint32(end - 4) : undefined
}

const PING_HEAD = encodeCommand({ name: 'PING', value: 0 }).subarray(0, PING_BYTES - 4)

function checkSections(reader: StreamReader, start: number, end: number): void {
  const { bytes } = reader
  const first = bytes[start]
  if (first !== RECORD_IDS.SECTION_FULL)
    refuse(reader, 'not a device section', `${RECORD_IDS.SECTION_FULL}`, `${first}`)
  const last = end - FOOTER_BYTES
  if (last <= start || bytes[last] !== RECORD_IDS.SECTION_FOOTER) {
    refuse(
      reader,
      'device sections do not end with a footer',
      `${RECORD_IDS.SECTION_FOOTER}`,
      `${bytes[last]}`,
    )
  }
}

/** The package is all there, so an early end is not a lost connection but wrong bytes. */
function endedInside(offset: number, record: string): Error {
  return new ProtocolError('package ends early', { offset, record })
}

function refuse(reader: StreamReader, what: string, expected: string, got: string): never {
  refuseAt(reader.streamOffset, RECORD, what, expected, got)
}
