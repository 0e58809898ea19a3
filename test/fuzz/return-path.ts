// Whatever bytes a destination sends back: a typed error, or requests for pages that exist. Nothing else reaches the
// source, no page is picked twice, and nothing is left over.

import assert from 'node:assert/strict'
import { ChannelError, type FarfaultError, ProtocolError } from '../../src/errors.js'
import type { GuestRemote } from '../../src/guest/guest-remote.js'
import { createMachine } from '../../src/machine.js'
import { orderSpec } from '../../src/order/orders.js'
import { acceptOn, closeFd, connectTo, listenOn, sendAll, shutdownChannel } from '../../src/os/channel.js'
import { mapAnonymous } from '../../src/os/mapping.js'
import { createWake } from '../../src/os/wake.js'
import { numberBlocks } from '../../src/ram/block.js'
import { createLiveOrigin } from '../../src/source/origin.js'
import { createOutgoing, type OutgoingOptions, PUSH_AT_ONCE } from '../../src/source/outgoing.js'
import { SOURCE_STATS } from '../../src/source/report.js'
import { SOURCE_STATUS } from '../../src/source/status.js'
import { createStats, statsBytes } from '../../src/stats.js'
import {
  createReturnPathParser,
  encodeReceivedBitmap,
  encodeReturnMessage,
  type ReturnMessage,
  receivedBitmapBytes,
} from '../../src/wire/messages.js'
import type { Pieces } from '../engine/base-streams.js'
import { openDescriptors, postcopySkipReason, watchedMappings } from '../engine/host.js'
import { NOTHING_HOSTILE, spoil } from '../engine/mutations.js'
import { createRandom, type Random } from '../engine/random.js'
import { assertTyped, type Ending, type OpenTarget, type Target } from './target.js'

const KiB = 1024
const BLOCKS = numberBlocks(
  [
    { name: 'a', length: 256 * KiB, pageSize: 4096 },
    { name: 'b', length: 64 * KiB, pageSize: 4096 },
  ].map((shape) => ({ ...shape, address: mapAnonymous(shape.length).address })),
)
const options: OutgoingOptions = {
  configuration: { machine: 'farfault-hostile' },
  ramSectionId: 1,
  postcopy: 'now',
  downtimeLimitMs: 25,
  maxBandwidth: 0,
  maxPostcopyBandwidth: 0,
  setupTimeoutMs: 1000,
  skip: [],
  recoverTimeMs: 0,
  silenceTimeoutMs: undefined,
  preempt: false,
  urgent: false,
  realTime: false,
  order: orderSpec('linear'),
  push: PUSH_AT_ONCE,
}

const messages: readonly ReturnMessage[] = [
  { name: 'PONG', value: 1 },
  { name: 'SWITCHOVER_ACK' },
  { name: 'REQ_PAGES_ID', start: 8192, length: 4096, block: 'a' },
  { name: 'REQ_PAGES', start: 0, length: 4096 },
  { name: 'REQ_PAGES', start: 252 * KiB, length: 4096 },
  { name: 'REQ_PAGES_ID', start: 60 * KiB, length: 4096, block: 'b' },
  { name: 'REQ_PAGES', start: 0, length: 64 * KiB },
  { name: 'PONG', value: 0x1000 },
  { name: 'SHUT', value: 0 },
]
const BASES: readonly Pieces[] = [
  messages.map(encodeReturnMessage),
  Array.from({ length: 300 }, (_, i) =>
    encodeReturnMessage(
      i === 0
        ? { name: 'REQ_PAGES_ID', start: 0, length: 4096, block: 'a' }
        : { name: 'REQ_PAGES', start: (i % 64) * 4096, length: 4096 },
    ),
  ),
  [
    encodeReceivedBitmap('a', new Uint8Array(8).fill(0x5a)),
    encodeReceivedBitmap('b', new Uint8Array(8)),
    encodeReturnMessage({ name: 'RESUME_ACK', value: 1 }),
    encodeReturnMessage({ name: 'REQ_PAGES', start: 0, length: 0xffff_f000 }),
    encodeReturnMessage({ name: 'REQ_PAGES_ID', start: 2 ** 40, length: 4096, block: 'nobody' }),
    encodeReturnMessage({ name: 'SHUT', value: 7 }),
  ],
]

interface SourceUnderTest {
  /** Sends `bytes` in pieces over the return path; answers the error it ends with, if any, and what was asked for. */
  feed(bytes: Uint8Array, random: Random): { error: unknown; requests: number }
  close(): void
}

/** The source's half of a connection after the switch, with all of RAM still to send. */
function sourceUnderTest(listenUri: string): SourceUnderTest {
  const wake = createWake()
  const listener = listenOn(listenUri)
  const statsMemory = new SharedArrayBuffer(statsBytes(SOURCE_STATS))

  function feed(bytes: Uint8Array, random: Random): { error: unknown; requests: number } {
    const near = connectTo(listener.uri, { timeoutMs: 1000 })
    const far = acceptOn(listener.fd, wake.fd, 1000) as number
    const stats = createStats(SOURCE_STATS, statsMemory)
    stats.requests = 0
    const origin = createLiveOrigin({ holdBalloon() {} } as unknown as GuestRemote, BLOCKS)
    const o = createOutgoing({
      fd: near,
      urgentFd: undefined,
      wake,
      options,
      blocks: BLOCKS,
      origin,
      status: createMachine('source', SOURCE_STATUS, new Int32Array(1), 0),
      stats,
      silenceMs: 10_000,
      takeOrders: () => [],
    })
    for (const bitmap of o.dirty) bitmap.setRange(0, bitmap.length)
    o.commit()
    const sent = new Set<number>()
    const pump = (): void => {
      o.link.pump(0)
      while (o.order.nextRequested()) {
        const { blockIndex, page } = o.order.pick
        const block = BLOCKS[blockIndex]!
        assert(page < block.pages, 'a page outside of its block would be sent')
        assert(!sent.has(block.firstPage + page), 'a page would be sent twice')
        sent.add(block.firstPage + page)
      }
    }
    try {
      for (let at = 0; at < bytes.length; ) {
        const count = random.oneIn(3) ? 1 + random.integer(20) : 4096
        sendAll(far, bytes.subarray(at, at + count))
        at += count
        pump()
      }
      shutdownChannel(far)
      // After a SHUT the end is no error; without one it is.
      while (o.link.shut() === undefined) pump()
      return { error: undefined, requests: stats.requests }
    } catch (error) {
      return { error, requests: stats.requests }
    } finally {
      o.close()
      origin.close()
      closeFd(near)
      closeFd(far)
    }
  }

  return {
    feed,
    close() {
      listener.close()
      wake.close()
    },
  }
}

export const returnPath: Target = {
  name: 'return-path',
  skip: postcopySkipReason(),
  share: 3,
  open(): OpenTarget {
    const source = sourceUnderTest(`unix:/tmp/farfault-fuzz-${process.pid}`)
    const sound = source.feed(Buffer.concat(BASES[0]!), createRandom(0))
    assert.deepEqual(sound, { error: undefined, requests: 5 })
    const descriptors = openDescriptors().length
    return {
      run(random) {
        const { bytes } = spoil(random.pick(BASES), random, BASES, NOTHING_HOSTILE)
        const { error } = source.feed(bytes, random)
        return error === undefined ? 'sound' : assertTyped(error)
      },
      close() {
        assert.equal(openDescriptors().length, descriptors, 'descriptors left open')
        assert.deepEqual(watchedMappings(), [], 'ranges are still watched')
        source.close()
      },
    }
  },
}

/** What the parser makes of `bytes` when they come in pieces of up to `mostAtOnce`. */
function parse(bytes: Uint8Array, random: Random, mostAtOnce: number) {
  const seen: ReturnMessage[] = []
  const parser = createReturnPathParser((message) => void seen.push(message), {
    expectedBitmapBytes(name) {
      const block = BLOCKS.find((each) => each.name === name)
      return block && receivedBitmapBytes(block.pages)
    },
  })
  try {
    for (let at = 0; at < bytes.length; ) {
      const count = 1 + random.integer(mostAtOnce)
      parser.feed(bytes.subarray(at, at + count))
      at += count
    }
    parser.end()
    return { seen, ending: 'sound' as Ending }
  } catch (error) {
    assert(error instanceof ProtocolError || error instanceof ChannelError, String(error))
    return { seen, ending: error as FarfaultError }
  }
}

/** The parser alone, which takes a return path the same however it is split; bitmaps of a recovery are expected. */
export const returnPathParser: Target = {
  name: 'return-path-parser',
  skip: false,
  share: 1,
  open: () => ({
    run(random) {
      const { bytes } = spoil(random.pick(BASES), random, BASES, NOTHING_HOSTILE)
      const inPieces = parse(bytes, random, 24)
      const whole = parse(bytes, random, 4096)
      assert.equal(JSON.stringify(inPieces.seen), JSON.stringify(whole.seen))
      assert.equal(String(inPieces.ending), String(whole.ending))
      return whole.ending
    },
    close() {},
  }),
}
