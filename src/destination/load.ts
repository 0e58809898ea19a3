// Reads the body of a RAM section and hands each page to the placer. Destination thread.

import { ProtocolError } from '../errors.js'
import { type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import { createRamRecord, RAM_RECORD_BYTES_MAX, type RamRecord, readRamRecord } from '../wire/ram-stream.js'
import type { StreamReader } from '../wire/reader.js'
import type { Placer } from './placer.js'

export interface RamLoader {
  /** Reads records up to the EOS that ends the body. @throws ProtocolError, ChannelError */
  loadBody(): void
  /** Reads one record; false when it was that EOS. */
  loadRecord(): boolean
}

/** Records between two looks at what else waits: so many pages take about a tenth of a millisecond. */
const RECORDS_PER_LOOK = 64

/** @param look called now and then while there is no need to wait for bytes: a guest thread may have stalled. */
export function createRamLoader(
  reader: StreamReader,
  blocks: readonly RamBlock[],
  placer: Placer,
  look: () => void = () => {},
): RamLoader {
  const byName = new Map(blocks.map((block) => [block.name, block]))
  const record = createRamRecord()
  // The block of the record before; it holds over the ends of sections.
  let block: RamBlock | undefined
  let records = 0

  function refuse(what: string, got: string): never {
    throw new ProtocolError(what, { offset: reader.streamOffset, record: 'ram page record', got })
  }

  function targetPage(r: RamRecord): number {
    if (r.blockName !== undefined) {
      block = byName.get(r.blockName)
      if (block === undefined) refuse('page of a RAM block that does not exist', `"${r.blockName}"`)
    } else if (block === undefined) {
      refuse('the first page does not name its RAM block', 'CONTINUE')
    }
    if (r.offset >= block.length) refuse(`page outside of RAM block "${block.name}"`, `offset ${r.offset}`)
    return r.offset / TARGET_PAGE_BYTES
  }

  function loadRecord(): boolean {
    readRamRecord(reader, record)
    switch (record.kind) {
      case 'page': {
        const page = targetPage(record)
        placer.page(block!, page, record.dataAt, reader.streamOffset)
        return true
      }
      case 'zero': {
        if (record.fill !== 0) refuse('a zero page is filled with something else', `byte ${record.fill}`)
        const page = targetPage(record)
        placer.zeroPage(block!, page, reader.streamOffset)
        return true
      }
      case 'xbzrle': {
        const page = targetPage(record)
        const delta = reader.bytes.subarray(record.dataAt, record.dataAt + record.dataLength)
        placer.delta(block!, page, delta, reader.streamOffset)
        return true
      }
      case 'multifd-flush':
        return true // without multifd channels it says nothing
      case 'eos':
        placer.flush()
        return false
      default:
        refuse('a kind of RAM record that cannot be taken here', record.kind)
    }
  }

  return {
    loadRecord,
    loadBody() {
      do {
        // The next record may make the reader refill its buffer, and a joined run points into it. It is also the moment
        // before the thread may block: whatever has come so far belongs into RAM.
        if (reader.available < RAM_RECORD_BYTES_MAX) placer.flush()
        if (++records % RECORDS_PER_LOOK === 0) look()
      } while (loadRecord())
    },
  }
}
