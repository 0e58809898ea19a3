// A migration stream in flight, cut into its records as they come: what a proxy between two ends needs to act at one of
// them. Nothing is changed: the bytes of the records, one after the other, are the stream.

import { ChannelError } from '../../src/errors.js'
import { type Command, RETURN_PATH, readCommand } from '../../src/wire/messages.js'
import { type RamBlockEntry, readRamSetup } from '../../src/wire/ram-setup.js'
import { createRamRecord, readRamRecord } from '../../src/wire/ram-stream.js'
import { readerOf, type StreamReader } from '../../src/wire/reader.js'
import {
  RECORD_IDS,
  readConfiguration,
  readFooter,
  readHeader,
  readRecordType,
  readSectionHeader,
} from '../../src/wire/sections.js'

export type RecordKind =
  | Command['name']
  /** With the configuration behind it. */
  | 'header'
  | 'package'
  /** A whole SECTION_START of RAM. */
  | 'ram-start'
  | 'ram-part'
  | 'ram-end'
  /** Of RAM: page, zero page, delta, compressed page, and the word that ends a body. */
  | 'page'
  | 'zero'
  | 'xbzrle'
  | 'compress'
  | 'eos'
  | 'footer'
  | 'device'
  | 'eof'
  /** What is not understood, and all that comes behind it: a piece as it came. */
  | 'rest'
  /** Back: the names of the messages. */
  | keyof typeof RETURN_PATH

export interface WireRecord {
  readonly kind: RecordKind
  readonly bytes: Buffer
  /** Of a page record and of RECV_BITMAP. */
  readonly block?: string
  /** Of a page record: byte offset in the block. */
  readonly offset?: number
  readonly command?: Command
  /** Of 'ram-start'. */
  readonly blocks?: readonly RamBlockEntry[]
  /** Of PONG. */
  readonly value?: number
  /** Of RECV_BITMAP. */
  readonly bitmap?: Uint8Array
}

export interface Splitter {
  feed(chunk: Buffer): void
  /** Undefined: the rest is not a whole record yet. */
  next(): WireRecord | undefined
  /** What is left when the stream ends inside a record. */
  rest(): Buffer
}

/** What the connections of one migration have in common. */
export interface StreamFacts {
  machine: string
  ramSectionId?: number
  postcopy: boolean
}

type Parsed = Omit<WireRecord, 'bytes'>

const MORE = new ChannelError('more bytes are needed')

/** Buffers bytes and hands them to `parse`, which reads one record or fails with MORE. */
function createSplitter(parse: (reader: StreamReader) => Parsed): Splitter {
  let bytes: Buffer = Buffer.alloc(0)
  let lost = false
  return {
    feed(chunk) {
      // A fresh buffer each time: what was handed out may be on its way still.
      bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk])
    },
    next() {
      if (bytes.length === 0) return undefined
      const reader = readerOf(bytes, { ended: () => MORE })
      let parsed: Parsed = { kind: 'rest' }
      let length = bytes.length
      try {
        if (!lost) {
          parsed = parse(reader)
          length = reader.position
        }
      } catch (error) {
        if (error === MORE) return undefined
        lost = true
      }
      const record = { ...parsed, bytes: bytes.subarray(0, length) }
      bytes = bytes.subarray(length)
      return record
    },
    rest: () => bytes,
  }
}

/**
 * Source to destination. A stream without a header is one that recovers: records from the first byte on.
 * @param pagesOnly the channel for urgent pages, which has page records and nothing around them.
 */
export function createForwardSplitter(facts: StreamFacts, pagesOnly: boolean): Splitter {
  const ram = createRamRecord()
  let state: 'start' | 'records' | 'body' | 'footer' | 'package' = pagesOnly ? 'body' : 'start'
  let packageBytes = 0
  let block: string | undefined

  function page(reader: StreamReader): Parsed {
    readRamRecord(reader, ram)
    const { kind, offset, blockName } = ram
    if (kind === 'eos') {
      if (!pagesOnly) state = 'footer'
      return { kind }
    }
    if (kind === 'mem-size' || kind === 'hook' || kind === 'multifd-flush') return { kind: 'rest' }
    block = blockName ?? block
    return { kind, offset, ...(block === undefined ? {} : { block }) }
  }

  function command(reader: StreamReader): Parsed {
    const command = readCommand(reader)
    if (command.name === 'POSTCOPY_ADVISE') facts.postcopy = command.sizes !== null
    if (command.name === 'PACKAGED') {
      packageBytes = command.length
      state = 'package'
    }
    return { kind: command.name, command }
  }

  function section(reader: StreamReader): Parsed {
    const type = readRecordType(reader)
    switch (type) {
      case 'COMMAND':
        return command(reader)
      case 'SECTION_START': {
        const { id, idstr } = readSectionHeader(reader, type)
        if (idstr !== 'ram') throw new Error(`section ${idstr} is not understood`)
        const { blocks } = readRamSetup(reader, { postcopy: facts.postcopy })
        readFooter(reader, id)
        facts.ramSectionId = id
        return { kind: 'ram-start', blocks }
      }
      case 'SECTION_PART':
      case 'SECTION_END': {
        const { id } = readSectionHeader(reader, type)
        if (id !== facts.ramSectionId) throw new Error(`section ${id} is not understood`)
        state = 'body'
        return { kind: type === 'SECTION_PART' ? 'ram-part' : 'ram-end' }
      }
      case 'SECTION_FULL': {
        // Only the bodies of our own guests' devices say how long they are.
        if (!facts.machine.startsWith('farfault-')) throw new Error('a device is not understood')
        const { id, idstr } = readSectionHeader(reader, type)
        reader.take(reader.u32(idstr), idstr)
        readFooter(reader, id)
        return { kind: 'device' }
      }
      case 'EOF':
        return { kind: 'eof' }
      default:
        throw new Error(`${type} is not understood`)
    }
  }

  const MAGIC = 'Q'.charCodeAt(0)
  return createSplitter((reader) => {
    switch (state) {
      case 'start':
        if (reader.bytes[reader.position] === MAGIC) {
          readHeader(reader)
          facts.machine = readConfiguration(reader).machine
          state = 'records'
          return { kind: 'header' }
        }
        state = 'records'
        return section(reader)
      case 'package':
        reader.take(packageBytes, 'package')
        state = 'records'
        return { kind: 'package' }
      case 'body':
        // Our own source says first which migration it belongs to.
        if (pagesOnly && reader.bytes[reader.position] === RECORD_IDS.COMMAND) return section(reader)
        return page(reader)
      case 'footer':
        readFooter(reader, facts.ramSectionId!)
        state = 'records'
        return { kind: 'footer' }
      case 'records':
        return section(reader)
    }
  })
}

const NAME_OF_ID = new Map(
  Object.entries(RETURN_PATH).map(([name, { id }]) => [id as number, name as keyof typeof RETURN_PATH]),
)

/** Destination to source. */
export function createBackSplitter(): Splitter {
  return createSplitter((reader) => {
    const id = reader.u16('message')
    const length = reader.u16('message')
    const body = reader.take(length, 'message')
    const kind = NAME_OF_ID.get(id)
    if (kind === undefined) throw new Error(`message ${id} is not understood`)
    if (kind === 'PONG') return { kind, value: reader.view.getUint32(body) }
    if (kind !== 'RECV_BITMAP') return { kind }
    const block = Buffer.from(reader.bytes.slice(body + 1, body + length)).toString('latin1')
    const size = reader.u64('bitmap')
    const at = reader.take(size, 'bitmap')
    reader.take(8, 'end mark')
    return { kind, block, bitmap: reader.bytes.slice(at, at + size) }
  })
}
