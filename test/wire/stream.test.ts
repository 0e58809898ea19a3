// Whole streams: byte for byte the same after decoding and encoding, however they are cut; and nothing but a typed error for
// streams that end early or are damaged.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ChannelError, FarfaultError, ProtocolError } from '../../src/errors.js'
import { concat } from '../../src/wire/bytes.js'
import { createReturnPathParser, encodeReturnMessage, type ReturnMessage } from '../../src/wire/messages.js'
import { splitPackage } from '../../src/wire/package.js'
import { encodeStreamItem, type StreamItem, walkStream } from '../../src/wire/stream.js'
import { chunkedReader, fixture, seeded } from './fixtures.js'

const STREAMS = { postcopy: fixture('postcopy'), precopy: fixture('precopy') }
const RETURN_PATH = fixture('return-path')

function itemsOf(bytes: Uint8Array, chunk?: number): StreamItem[] {
  const items: StreamItem[] = []
  walkStream(chunkedReader(bytes, chunk), (item) => items.push(item))
  return items
}

function messagesOf(bytes: Uint8Array, chunk = bytes.length): ReturnMessage[] {
  const messages: ReturnMessage[] = []
  const parser = createReturnPathParser((message) => messages.push(message), {
    expectedBitmapBytes: (block) => (block === 'pc.ram' ? 16 : undefined),
  })
  for (let at = 0; at < bytes.length; at += chunk) parser.feed(bytes.subarray(at, at + chunk))
  parser.end()
  return messages
}

for (const [name, bytes] of Object.entries(STREAMS)) {
  test(`${name}: encoding what was decoded gives the same bytes`, () => {
    assert.deepEqual(concat(itemsOf(bytes).map(encodeStreamItem)), bytes)
  })

  test(`${name}: pieces of any size decode alike`, { timeout: 90_000 }, () => {
    const whole = itemsOf(bytes)
    for (const chunk of [1, 2, 3, 4, 5, 7, 8, 9, 13, 64, 4095, 4096, 4097])
      assert.deepEqual(itemsOf(bytes, chunk), whole)
  })

  test(`${name}: an end at any byte is an error of the channel, except before the description`, {
    timeout: 180_000,
  }, () => {
    const descriptionAt = bytes.at(-1) === 0 ? bytes.length : bytes.length - 7
    for (let end = 0; end < bytes.length; end++) {
      if (end === descriptionAt) itemsOf(bytes.subarray(0, end))
      else assert.throws(() => itemsOf(bytes.subarray(0, end)), ChannelError, `cut at ${end}`)
    }
  })
}

test('postcopy: the items, one by one', () => {
  const kinds = itemsOf(STREAMS.postcopy).map((item) =>
    item.kind === 'command' ? item.command.name : item.kind,
  )
  assert.deepEqual(kinds, [
    'header',
    'OPEN_RETURN_PATH',
    'PING',
    'POSTCOPY_ADVISE',
    'ram-start',
    'SWITCHOVER_START',
    'POSTCOPY_RAM_DISCARD',
    'POSTCOPY_RAM_DISCARD',
    'PING',
    'PACKAGED',
    'package',
    'PING',
    'ram-part',
    ...new Array(4).fill('ram-record'),
    'footer',
    'ram-part',
    'ram-record',
    'footer',
    'ram-end',
    ...new Array(3).fill('ram-record'),
    'footer',
    'eof',
  ])
})

test('postcopy: the package holds one device and the PING', () => {
  const item = itemsOf(STREAMS.postcopy).find(({ kind }) => kind === 'package')
  assert(item?.kind === 'package')
  const { devices, pings } = splitPackage(item.bytes)
  assert.deepEqual(pings, [3])
  assert.equal(devices.length, item.bytes.length - 19)
})

test('precopy: what is optional is found', () => {
  const items = itemsOf(STREAMS.precopy)
  const [header] = items
  assert(header?.kind === 'header')
  assert.deepEqual(header.configuration, {
    machine: 'microvm',
    targetPageBits: 12,
    capabilities: ['x-ignore-shared'],
    uuid: Uint8Array.from(Buffer.from('00112233445566778899aabbccddeeff', 'hex')),
  })
  const start = items.find(({ kind }) => kind === 'ram-start')
  assert(start?.kind === 'ram-start')
  assert.equal(start.setup.total, 2 ** 32 + 65_536)
  assert.equal(start.setup.multifdFlush, true)
  assert.deepEqual(start.setup.blocks[1], {
    name: 'pc.bios',
    length: 65_536,
    pageSize: 4096,
    address: 0xffff0000,
  })
})

test('return path: encoding what was decoded gives the same bytes, however they are cut', () => {
  for (let chunk = 1; chunk <= RETURN_PATH.length; chunk++) {
    assert.deepEqual(concat(messagesOf(RETURN_PATH, chunk).map(encodeReturnMessage)), RETURN_PATH)
  }
})

test('return path: the messages, one by one', () => {
  assert.deepEqual(messagesOf(RETURN_PATH), [
    { name: 'PONG', value: 1 },
    { name: 'SWITCHOVER_ACK' },
    { name: 'REQ_PAGES_ID', start: 0x1_0000_3000, length: 4096, block: 'pc.ram' },
    { name: 'REQ_PAGES', start: 0x5000, length: 4096 },
    { name: 'RECV_BITMAP', block: 'pc.ram', bitmap: Uint8Array.of(5, ...new Array(14).fill(0), 0x80) },
    { name: 'RESUME_ACK', value: 1 },
    { name: 'SHUT', value: 0 },
  ])
})

test('a part of a section that was never started is refused', () => {
  const items = itemsOf(STREAMS.postcopy)
  const renamed = items.map((item) => (item.kind === 'ram-end' ? { ...item, id: 3 } : item))
  assert.throws(() => itemsOf(concat(renamed.map(encodeStreamItem))), {
    code: 'PROTOCOL',
    record: 'SECTION_END',
    expected: '2',
    got: '3',
  })
})

/** 1 to 4 bytes changed, put in or taken out. */
function damaged(bytes: Uint8Array, random: (end: number) => number): Uint8Array {
  let result = Uint8Array.from(bytes)
  for (let i = random(4); i >= 0; i--) {
    // Most of a stream is page content, where damage does nothing; the other half goes to the first bytes.
    const at = random(random(2) === 0 ? result.length : Math.min(400, result.length))
    const change = random(4)
    if (change === 0)
      result = concat([result.subarray(0, at), result.subarray(at + 1)]) as Uint8Array<ArrayBuffer>
    else if (change === 1)
      result = concat([
        result.subarray(0, at),
        Uint8Array.of(random(256)),
        result.subarray(at),
      ]) as Uint8Array<ArrayBuffer>
    else result[at] = change === 2 ? random(256) : result[at]! ^ (1 << random(8))
  }
  return result
}

test('damage gives a typed error or a stream, never anything else', { timeout: 90_000 }, () => {
  const sources: readonly [Uint8Array, (bytes: Uint8Array) => unknown][] = [
    [STREAMS.postcopy, itemsOf],
    [STREAMS.precopy, itemsOf],
    [RETURN_PATH, messagesOf],
  ]
  let refused = 0
  for (let seed = 1; seed <= 10_000; seed++) {
    const random = seeded(seed)
    const [bytes, decode] = sources[seed % sources.length]!
    try {
      decode(damaged(bytes, random))
    } catch (error) {
      const typed = error instanceof ProtocolError || error instanceof ChannelError
      assert(
        typed && error instanceof FarfaultError,
        `seed ${seed}: ${error instanceof Error ? error.stack : error}`,
      )
      refused++
    }
  }
  assert(refused > 5000, `only ${refused} refused`)
})
