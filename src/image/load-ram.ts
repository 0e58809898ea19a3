// Reads the bodies of RAM sections of an ordinary stream and hands each page to a sink. Runs wherever a stream is
// converted, parked or looked into.

import { inflateSync } from 'node:zlib'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { createRamRecord, type RamRecord, readRamRecord } from '../wire/ram-stream.js'
import type { StreamReader } from '../wire/reader.js'
import { refuseAt } from '../wire/slice.js'
import { applyXbzrle } from '../wire/xbzrle.js'
import type { ImageWriter } from './writer.js'

/** Takes pages. `bytes` holds what the sender sent at `at`, until the call returns; `offset` is a stream offset, for errors. */
export interface PageSink {
  page(block: number, page: number, bytes: Uint8Array, at: number): void
  /** A page of which every byte is `byte`. */
  fill(block: number, page: number, byte: number): void
  /** XBZRLE delta to what the page was. */
  delta(block: number, page: number, delta: Uint8Array, offset: number): void
  /** A page as a zlib stream. */
  compressed(block: number, page: number, data: Uint8Array, offset: number): void
}

export interface RamBlockShape {
  readonly name: string
  readonly length: number
}

const RECORD = 'ram record'

/** Reads one body up to its EOS. @throws ProtocolError for records of pages that do not exist. */
export function createBodyLoader(
  blocks: readonly RamBlockShape[],
  sink: PageSink,
): (reader: StreamReader) => void {
  const indexOf = new Map(blocks.map(({ name }, index) => [name, index]))
  const record = createRamRecord()
  // The block of the record before; it holds over the ends of sections.
  let block: number | undefined

  function pageOf({ blockName, offset }: RamRecord, at: number): number {
    if (blockName !== undefined) {
      block = indexOf.get(blockName)
      if (block === undefined) return refuseAt(at, RECORD, 'unknown RAM block', undefined, blockName)
    }
    if (block === undefined) return refuseAt(at, RECORD, 'first page does not name its block')
    const { name, length } = blocks[block]!
    if (offset >= length)
      refuseAt(at, RECORD, `page outside of block ${name}`, `below ${length}`, `${offset}`)
    return offset / TARGET_PAGE_BYTES
  }

  return (reader) => {
    for (;;) {
      const offset = reader.streamOffset
      readRamRecord(reader, record)
      const { kind, dataAt, dataLength } = record
      switch (kind) {
        case 'page': {
          const page = pageOf(record, offset)
          sink.page(block!, page, reader.bytes, dataAt)
          break
        }
        case 'zero': {
          const page = pageOf(record, offset)
          sink.fill(block!, page, record.fill)
          break
        }
        case 'xbzrle':
        case 'compress': {
          const page = pageOf(record, offset)
          const data = reader.bytes.subarray(dataAt, dataAt + dataLength)
          sink[kind === 'xbzrle' ? 'delta' : 'compressed'](block!, page, data, offset)
          break
        }
        case 'multifd-flush':
          break // without multifd channels it says nothing
        case 'eos':
          return
        default:
          refuseAt(offset, RECORD, 'record not legal here', 'pages', kind)
      }
    }
  }
}

/** Pages into an image. */
export function imageSink(writer: ImageWriter): PageSink {
  const scratch = new Uint8Array(TARGET_PAGE_BYTES)
  return {
    page: (block, page, bytes, at) => writer.writeRun(block, page, bytes, at, 1),
    fill(block, page, byte) {
      if (byte === 0) return writer.zeroRun(block, page, 1)
      writer.writeRun(block, page, scratch.fill(byte), 0, 1)
    },
    delta(block, page, delta, offset) {
      writer.readPage(block, page, scratch)
      applyXbzrle(scratch, delta, offset)
      writer.writeRun(block, page, scratch, 0, 1)
    },
    compressed(block, page, data, offset) {
      writer.writeRun(block, page, inflatePage(data, offset), 0, 1)
    },
  }
}

function inflatePage(data: Uint8Array, offset: number): Uint8Array {
  const expected = `${TARGET_PAGE_BYTES} bytes`
  let page: Uint8Array
  try {
    page = inflateSync(data, { maxOutputLength: TARGET_PAGE_BYTES })
  } catch (error) {
    return refuseAt(offset, RECORD, 'compressed page cannot be inflated', expected, (error as Error).message)
  }
  if (page.length !== TARGET_PAGE_BYTES)
    refuseAt(offset, RECORD, 'compressed page has another length', expected, `${page.length}`)
  return page
}
