// The outer layer of a saved stream, whatever form its RAM has: who reads the RAM is told where it begins. Runs wherever
// an image is opened, a stream is converted or looked into.
//
// Device bodies can only be taken apart with the description at the end. So from the first device section behind the
// RAM on, everything up to the end is read into memory (it is small) and split there.

import { LIMITS } from '../limits.js'
import { type Command, readCommand } from '../wire/messages.js'
import { splitPackage } from '../wire/package.js'
import type { StreamReader } from '../wire/reader.js'
import {
  type Configuration,
  type NamedSection,
  RECORD_IDS,
  readConfiguration,
  readFooter,
  readHeader,
  readRecordType,
  readSectionHeader,
} from '../wire/sections.js'
import { refuseAt } from '../wire/slice.js'
import { findVmDescription } from '../wire/vm-description.js'
import { type StreamTail, splitDevices, TAIL_BYTES_MAX } from './split-devices.js'

export interface StreamHandlers {
  /** May refuse a stream by what it announces. */
  configuration(configuration: Configuration, offset: number): void
  /** Reads the body of the RAM's SECTION_START; answers the reader to go on with. */
  ramStart(reader: StreamReader, section: NamedSection): StreamReader
  /** Reads the body of a SECTION_PART or SECTION_END. */
  ramBody(reader: StreamReader): void
  /** Commands, but for the package; those that stand in the package between LISTEN and RUN, too. */
  command?(command: Command, offset: number): void
  /**
   * For a peer that may leave the connection open behind the last byte: waits a moment for more, and is true when nothing
   * came. Without it the stream goes on until its bytes end.
   */
  quiet?(): boolean
}

export interface StreamContent extends StreamTail {
  readonly configuration: Configuration
  readonly ramSection: NamedSection
  /** Sections of RAM: the start, the parts and the end. */
  readonly ramSections: number
}

/**
 * Reads a stream to its end. Yields the stream offset between records, so that the caller can show progress or stop.
 * `path` is for errors. Errors: `ProtocolError`, and what the reader throws at an early end.
 */
export function* readStream(
  first: StreamReader,
  path: string,
  handlers: StreamHandlers,
): Generator<number, StreamContent> {
  let reader = first
  let ramSection: NamedSection | undefined
  let ramSections = 0
  let packaged: Uint8Array | undefined
  const start = reader.streamOffset
  readHeader(reader)
  const configuration = readConfiguration(reader)
  handlers.configuration(configuration, start)

  const finish = (tail: StreamTail): StreamContent => {
    if (ramSection === undefined) refuseAt(reader.streamOffset, 'stream', 'has no RAM section')
    if (tail.sections.length === 0) refuseAt(reader.streamOffset, 'stream', 'has no device sections')
    return { configuration, ramSection, ramSections, ...tail }
  }

  for (let ended = false; ; ) {
    yield reader.streamOffset
    const offset = reader.streamOffset
    const type = RECORD_OF_TAIL.has(reader.bytes[reader.need(1, 'record type')]!)
      ? 'tail'
      : readRecordType(reader)
    switch (type) {
      case 'COMMAND': {
        const command = readCommand(reader)
        if (command.name !== 'PACKAGED') handlers.command?.(command, offset)
        else packaged = readPackage(reader, command.length, handlers)
        break
      }
      case 'SECTION_START':
        ramSection = checkRamSection(readSectionHeader(reader, type), ramSection, offset)
        reader = handlers.ramStart(reader, ramSection)
        readFooter(reader, ramSection.id)
        ramSections++
        break
      case 'SECTION_PART':
      case 'SECTION_END': {
        const { id } = readSectionHeader(reader, type)
        if (id !== ramSection?.id || ended)
          refuseAt(offset, type, 'unknown section', `${ramSection?.id ?? 'none'}`, `${id}`)
        handlers.ramBody(reader)
        readFooter(reader, id)
        ramSections++
        ended = type === 'SECTION_END'
        break
      }
      case 'tail': {
        if (!ended) refuseAt(offset, 'record', 'before the end of the RAM', 'a section of RAM', 'another')
        if (packaged === undefined)
          return finish(splitDevices(readTail(reader, handlers.quiet), { offset, path }))
        readEndOfPostcopy(reader, handlers.quiet)
        return finish(splitDevices(packaged, { path }))
      }
      default:
        refuseAt(offset, type, 'unexpected record', 'a section or the end', type)
    }
  }
}

const CLOSING_BRACE = '}'.charCodeAt(0)

/** A footer, and the record that says the end: all there is when the source writes no description. */
const endsWithEof = (bytes: Uint8Array): boolean =>
  bytes.at(-1) === RECORD_IDS.EOF && bytes.at(-6) === RECORD_IDS.SECTION_FOOTER

/** What begins the last part of a stream. */
const RECORD_OF_TAIL: ReadonlySet<number> = new Set([RECORD_IDS.SECTION_FULL, RECORD_IDS.EOF])

const RAM_VERSION = 4

function checkRamSection(
  section: NamedSection,
  before: NamedSection | undefined,
  offset: number,
): NamedSection {
  const { idstr, instance, version } = section
  if (idstr !== 'ram' || instance !== 0)
    refuseAt(offset, 'SECTION_START', 'section that goes on cannot be taken', 'ram', `${idstr}/${instance}`)
  if (before !== undefined) refuseAt(offset, 'SECTION_START', 'a second RAM section')
  if (version !== RAM_VERSION)
    refuseAt(offset, 'SECTION_START', 'other version of the RAM section', `${RAM_VERSION}`, `${version}`)
  return section
}

/** The device sections in a package; a copy. */
function readPackage(reader: StreamReader, length: number, handlers: StreamHandlers): Uint8Array {
  const offset = reader.streamOffset
  if (length > LIMITS.packageBytesMax)
    refuseAt(offset, 'PACKAGED', 'package too long', `at most ${LIMITS.packageBytesMax}`, `${length}`)
  const bytes = new Uint8Array(length)
  reader.copyOut(bytes, 'package')
  const { devices, pings } = splitPackage(bytes, offset)
  for (const value of pings) handlers.command?.({ name: 'PING', value }, offset)
  return devices
}

/** Behind postcopy there is nothing but the end; a live peer keeps the connection open and waits for an answer. */
function readEndOfPostcopy(reader: StreamReader, quiet: (() => boolean) | undefined): void {
  const offset = reader.streamOffset
  const type = readRecordType(reader)
  if (type !== 'EOF') refuseAt(offset, type, 'device state behind a package', 'EOF', type)
  if (reader.available > 0 || (quiet === undefined && !reader.atEnd()))
    refuseAt(offset, 'stream', 'more behind the end', 'no more bytes', 'some')
}

/** Everything up to the end of the stream; also to the end of a description, as a peer may leave the connection open. */
function readTail(reader: StreamReader, quiet: () => boolean = () => false): Uint8Array {
  const offset = reader.streamOffset
  let bytes = Buffer.alloc(256 * 1024)
  let length = 0
  const complete = (): boolean => {
    const read = bytes.subarray(0, length)
    // Only what ends as a description does is searched for one.
    if (read.at(-1) === CLOSING_BRACE && findVmDescription(read) !== undefined) return true
    return endsWithEof(read) && quiet()
  }
  while (reader.available > 0 || !(complete() || reader.atEnd())) {
    const part = reader.available
    if (length + part > TAIL_BYTES_MAX)
      refuseAt(offset, 'device sections', 'too long', `at most ${TAIL_BYTES_MAX}`, 'more')
    if (length + part > bytes.length) bytes = Buffer.concat([bytes, Buffer.alloc(bytes.length + part)])
    const at = reader.take(part, 'device sections')
    bytes.set(reader.bytes.subarray(at, at + part), length)
    length += part
  }
  return bytes.subarray(0, length)
}
