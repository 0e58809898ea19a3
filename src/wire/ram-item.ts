// A RAM record with a copy of its data, and its bytes. For tests and tools; pure.

import { concat, copyOf, viewOf } from './bytes.js'
import { encode, idstr, u8, u16, u32 } from './codec.js'
import { RAM_FLAGS, RAM_KINDS, type RamRecord, writeRamWord, XBZRLE_ENCODING } from './ram-stream.js'

export interface RamItem extends Readonly<Omit<RamRecord, 'dataAt' | 'dataLength'>> {
  readonly data: Uint8Array
}

/** `record` as an item; `bytes` is the buffer of the reader that it was read from. */
export function ramItem(record: RamRecord, bytes: Uint8Array): RamItem {
  const { dataAt, dataLength, ...fields } = record
  return { ...fields, data: copyOf(bytes, dataAt, dataAt + dataLength) }
}

/** The inverse of `readRamRecord`. */
export function encodeRamItem(item: RamItem): Uint8Array {
  const { flag, ofPage } = RAM_KINDS[item.kind]
  const continued = ofPage && item.blockName === undefined
  const word = new Uint8Array(8)
  writeRamWord(viewOf(word), 0, item.offset, flag | (continued ? RAM_FLAGS.CONTINUE : 0))
  const name = item.blockName === undefined ? [] : [encode(idstr, item.blockName)]
  return concat([word, ...name, ...prefix(item), item.data])
}

/** What stands between the name and the data. */
function prefix({ kind, fill, data }: RamItem): Uint8Array[] {
  switch (kind) {
    case 'zero':
      return [encode(u8, fill)]
    case 'xbzrle':
      return [encode(u8, XBZRLE_ENCODING), encode(u16, data.length)]
    case 'compress':
      return [encode(u32, data.length)]
    default:
      return []
  }
}
