// What a migration stream says RAM must hold, worked out from its records alone: the test's second opinion.

import { readerOf } from '../../src/wire/reader.js'
import { type StreamItem, walkStream } from '../../src/wire/stream.js'
import { applyXbzrle } from '../../src/wire/xbzrle.js'

const PAGE_BYTES = 4096

export interface StreamModel {
  /** Content by block and byte offset; a page that is not there never came, or was discarded. */
  readonly pages: ReadonlyMap<string, ReadonlyMap<number, Uint8Array>>
  readonly ended: boolean
}

/** @throws what reading the stream throws */
export function modelOf(stream: Uint8Array): StreamModel {
  const pages = new Map<string, Map<number, Uint8Array>>()
  let block = ''
  let ended = false
  walkStream(readerOf(stream), (item) => {
    if (item.kind === 'ram-start') for (const { name } of item.setup.blocks) pages.set(name, new Map())
    if (item.kind === 'command') discard(pages, item)
    if (item.kind === 'eof') ended = true
    if (item.kind !== 'ram-record') return
    const { kind, blockName, offset, data } = item.record
    block = blockName ?? block
    const ofBlock = pages.get(block)
    if (kind === 'zero') ofBlock?.set(offset, new Uint8Array(PAGE_BYTES))
    if (kind === 'page') ofBlock?.set(offset, data)
    if (kind === 'xbzrle') {
      const changed = (ofBlock?.get(offset) ?? new Uint8Array(PAGE_BYTES)).slice()
      applyXbzrle(changed, data)
      ofBlock?.set(offset, changed)
    }
  })
  return { pages, ended }
}

function discard(pages: Map<string, Map<number, Uint8Array>>, item: StreamItem & { kind: 'command' }): void {
  if (item.command.name !== 'POSTCOPY_RAM_DISCARD') return
  const ofBlock = pages.get(item.command.block)
  for (const { start, length } of item.command.ranges) {
    for (let offset = start; offset < start + length; offset += PAGE_BYTES) ofBlock?.delete(offset)
  }
}
