// A whole migration stream as a list of items, for tests and tools. Pure; any thread. Not for hot paths: it copies.
//
// Every byte of the stream is in exactly one item, and the encoded items one after the other are the stream again.
// Bodies of device sections are taken to be our own guests', which say how long they are, unless the caller knows.

import { LIMITS } from '../limits.js'
import { concat } from './bytes.js'
import { type Command, encodeCommand, readCommand } from './messages.js'
import { encodeRamItem, type RamItem, ramItem } from './ram-item.js'
import { encodeRamSetup, type RamSetup, type RamSetupOptions, readRamSetup } from './ram-setup.js'
import { createRamRecord, readRamRecord } from './ram-stream.js'
import type { StreamReader } from './reader.js'
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
  type NamedSection,
  readConfiguration,
  readFooter,
  readHeader,
  readRecordType,
  readSectionHeader,
  readVmDescription,
} from './sections.js'
import { refuseAt } from './slice.js'

export type StreamItem =
  | { readonly kind: 'header'; readonly configuration: Configuration }
  | { readonly kind: 'command'; readonly command: Command }
  /** What follows a PACKAGED command; see `splitPackage`. */
  | { readonly kind: 'package'; readonly bytes: Uint8Array }
  /** A whole SECTION_START of RAM with its footer. */
  | { readonly kind: 'ram-start'; readonly section: NamedSection; readonly setup: RamSetup & RamSetupOptions }
  | { readonly kind: 'ram-part' | 'ram-end'; readonly id: number }
  | { readonly kind: 'ram-record'; readonly record: RamItem }
  /** End of a part or of the end of RAM. */
  | { readonly kind: 'footer'; readonly id: number }
  /** A whole SECTION_FULL with its footer. */
  | { readonly kind: 'device'; readonly section: NamedSection; readonly body: Uint8Array }
  | { readonly kind: 'eof' }
  | { readonly kind: 'vmdescription'; readonly json: Uint8Array }

export interface WalkOptions {
  /** Length of the body of a SECTION_FULL, bytes; called once for each, in order. */
  readonly deviceBodyBytes?: (section: NamedSection) => number
  /** Set for a connection that recovers a migration: it has no header, and RAM goes on in the section of this id. */
  readonly ramSectionId?: number
}

/** What a walk has learnt so far, and needs for what comes. */
interface Walk extends WalkOptions {
  readonly reader: StreamReader
  readonly visit: (item: StreamItem) => void
  ramSectionId?: number
  postcopy: boolean
  ignoreShared: boolean
}

/**
 * Reads a stream to its end and hands each item to `visit`.
 * Errors: `ProtocolError`, `ChannelError` when it ends early; what was read until then has been handed out.
 */
export function walkStream(
  reader: StreamReader,
  visit: (item: StreamItem) => void,
  options: WalkOptions = {},
): void {
  const walk: Walk = { ...options, reader, visit, postcopy: false, ignoreShared: false }
  if (walk.ramSectionId === undefined) walkHeader(walk)
  while (walkRecord(walk)) {
    // `walkRecord` has done the work.
  }
}

function walkHeader(walk: Walk): void {
  readHeader(walk.reader)
  const configuration = readConfiguration(walk.reader)
  walk.ignoreShared = configuration.capabilities?.includes('x-ignore-shared') ?? false
  walk.visit({ kind: 'header', configuration })
}

/** False when that was the last one. */
function walkRecord(walk: Walk): boolean {
  const offset = walk.reader.streamOffset
  const type = readRecordType(walk.reader)
  switch (type) {
    case 'COMMAND':
      walkCommand(walk)
      return true
    case 'SECTION_START':
      walkRamStart(walk)
      return true
    case 'SECTION_PART':
    case 'SECTION_END':
      walkRamPart(walk, type)
      return true
    case 'SECTION_FULL':
      walkDevice(walk)
      return true
    case 'EOF':
      walkEnd(walk)
      return false
    case 'VMDESCRIPTION':
      return refuseAt(offset, type, 'description before the end', 'EOF', type)
  }
}

function walkCommand(walk: Walk): void {
  const { reader, visit } = walk
  const command = readCommand(reader)
  visit({ kind: 'command', command })
  if (command.name === 'POSTCOPY_ADVISE') walk.postcopy = command.sizes !== null
  if (command.name !== 'PACKAGED') return
  visit({ kind: 'package', bytes: copyBytes(reader, command.length, 'package') })
}

function walkRamStart(walk: Walk): void {
  const { reader, visit, postcopy, ignoreShared } = walk
  const offset = reader.streamOffset
  const section = readSectionHeader(reader, 'SECTION_START')
  if (section.idstr !== 'ram') refuseAt(offset, 'SECTION_START', 'unknown section', 'ram', section.idstr)
  const setup = readRamSetup(reader, { postcopy, ignoreShared })
  readFooter(reader, section.id)
  walk.ramSectionId = section.id
  visit({ kind: 'ram-start', section, setup: { ...setup, postcopy, ignoreShared } })
}

function walkRamPart(walk: Walk, type: 'SECTION_PART' | 'SECTION_END'): void {
  const { reader, visit } = walk
  const offset = reader.streamOffset
  const { id } = readSectionHeader(reader, type)
  if (id !== walk.ramSectionId) refuseAt(offset, type, 'unknown section', `${walk.ramSectionId}`, `${id}`)
  visit({ kind: type === 'SECTION_PART' ? 'ram-part' : 'ram-end', id })
  const record = createRamRecord()
  do {
    readRamRecord(reader, record)
    if (record.kind === 'mem-size' || record.kind === 'hook') {
      refuseAt(reader.streamOffset - 8, type, 'record not legal here', 'pages', record.kind)
    }
    visit({ kind: 'ram-record', record: ramItem(record, reader.bytes) })
  } while (record.kind !== 'eos')
  readFooter(reader, id)
  visit({ kind: 'footer', id })
}

function walkDevice(walk: Walk): void {
  const { reader, visit, deviceBodyBytes } = walk
  const section = readSectionHeader(reader, 'SECTION_FULL')
  // Our own bodies begin with their length, which is looked at but stays a part of the body.
  const length = deviceBodyBytes?.(section) ?? 4 + reader.view.getUint32(reader.need(4, section.idstr))
  const body = copyBytes(reader, length, section.idstr)
  readFooter(reader, section.id)
  visit({ kind: 'device', section, body })
}

function walkEnd(walk: Walk): void {
  const { reader, visit } = walk
  visit({ kind: 'eof' })
  if (reader.atEnd()) return
  const offset = reader.streamOffset
  const type = readRecordType(reader)
  if (type !== 'VMDESCRIPTION') refuseAt(offset, type, 'stream goes on after its end', 'VMDESCRIPTION', type)
  visit({ kind: 'vmdescription', json: readVmDescription(reader) })
  if (!reader.atEnd()) refuseAt(reader.streamOffset, type, 'stream goes on after its end', 'no more bytes')
}

function copyBytes(reader: StreamReader, length: number, record: string): Uint8Array {
  const most = LIMITS.packageBytesMax
  if (length > most) refuseAt(reader.streamOffset, record, 'too long', `at most ${most}`, `${length}`)
  const bytes = new Uint8Array(length)
  reader.copyOut(bytes, record)
  return bytes
}

/** The bytes of an item, as they were in the stream. */
export function encodeStreamItem(item: StreamItem): Uint8Array {
  switch (item.kind) {
    case 'header':
      return concat([encodeHeader(), encodeConfiguration(item.configuration)])
    case 'command':
      return encodeCommand(item.command)
    case 'package':
      return item.bytes
    case 'ram-start': {
      const { section, setup } = item
      return concat([
        encodeSectionStart(section),
        encodeRamSetup(setup.blocks, setup),
        encodeFooter(section.id),
      ])
    }
    case 'ram-part':
      return encodeSectionPart(item.id)
    case 'ram-end':
      return encodeSectionEnd(item.id)
    case 'ram-record':
      return encodeRamItem(item.record)
    case 'footer':
      return encodeFooter(item.id)
    case 'device':
      return encodeSectionFull(item.section, item.body)
    case 'eof':
      return END_OF_STREAM
    case 'vmdescription':
      return encodeVmDescription(item.json)
  }
}
