// The reader of whole streams, which tools and tests use: what it takes, it can write again, byte for byte.

import assert from 'node:assert/strict'
import { readerOf } from '../../src/wire/reader.js'
import { encodeStreamItem, type StreamItem, walkStream } from '../../src/wire/stream.js'
import { type BlockShape, baseStreams } from '../engine/base-streams.js'
import { hostileFor, spoil } from '../engine/mutations.js'
import { type Ending, refusalOf, type Target } from './target.js'

const KiB = 1024
const BLOCKS: readonly BlockShape[] = [
  { name: 'a', length: 64 * KiB, pageSize: 4096 },
  { name: 'b', length: 16 * KiB, pageSize: 4096 },
]

export const records: Target = {
  name: 'records',
  skip: false,
  share: 1,
  open() {
    const bases = baseStreams(BLOCKS).map(({ pieces }) => pieces)
    const hostile = hostileFor(64 * KiB, 16 * KiB)
    return {
      run(random): Ending {
        const { bytes } = spoil(random.pick(bases), random, bases, hostile)
        const items: StreamItem[] = []
        const result = refusalOf(() => walkStream(readerOf(bytes), (item) => void items.push(item)))
        const again = Buffer.concat(items.map(encodeStreamItem))
        assert(again.equals(bytes.subarray(0, again.length)), 'written again, the records are others')
        if ('error' in result) return result.error
        assert.equal(again.length, bytes.length)
        return 'sound'
      },
      close() {},
    }
  },
}
