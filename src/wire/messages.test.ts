import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ChannelError, ProtocolError } from '../errors.js'
import {
  COMMANDS,
  type Command,
  createReturnPathParser,
  encodeCommand,
  encodeReceivedBitmap,
  encodeReturnMessage,
  RETURN_PATH,
  type ReturnMessage,
  readCommand,
  receivedBitmapBytes,
} from './messages.js'
import { readerOf } from './reader.js'

const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const fromHex = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'))

const unexpected = (message: ReturnMessage) => assert.fail(`unexpected ${message.name}`)

/** Reads a whole command record. */
function decodeCommand(bytes: Uint8Array): Command {
  const reader = readerOf(bytes)
  assert.equal(reader.u8('type'), 8)
  const command = readCommand(reader)
  assert(reader.atEnd())
  return command
}

test('ids and lengths are those of QEMU', () => {
  const rows = (table: typeof COMMANDS | typeof RETURN_PATH) =>
    Object.entries(table).map(([name, { id, body }]) => [id, name, body.fixed ?? -1])
  assert.deepEqual(rows(COMMANDS), [
    [1, 'OPEN_RETURN_PATH', 0],
    [2, 'PING', 4],
    [3, 'POSTCOPY_ADVISE', -1],
    [4, 'POSTCOPY_LISTEN', 0],
    [5, 'POSTCOPY_RUN', 0],
    [6, 'POSTCOPY_RAM_DISCARD', -1],
    [7, 'PACKAGED', 4],
    [8, 'ENABLE_COLO', 0],
    [9, 'POSTCOPY_RESUME', 0],
    [10, 'RECV_BITMAP', -1],
    [11, 'SWITCHOVER_START', 0],
  ])
  assert.deepEqual(rows(RETURN_PATH), [
    [1, 'SHUT', 4],
    [2, 'PONG', 4],
    [3, 'REQ_PAGES_ID', -1],
    [4, 'REQ_PAGES', 12],
    [5, 'RECV_BITMAP', -1],
    [6, 'RESUME_ACK', 4],
    [7, 'SWITCHOVER_ACK', 0],
  ])
})

const COMMAND_BYTES: readonly [Command, string][] = [
  [{ name: 'OPEN_RETURN_PATH' }, '08 0001 0000'],
  [{ name: 'PING', value: 3 }, '08 0002 0004 00000003'],
  [
    { name: 'POSTCOPY_ADVISE', sizes: { pageSizeSummary: 0x201000, targetPageSize: 4096 } },
    '08 0003 0010 0000000000201000 0000000000001000',
  ],
  [{ name: 'POSTCOPY_ADVISE', sizes: null }, '08 0003 0000'],
  [{ name: 'POSTCOPY_LISTEN' }, '08 0004 0000'],
  [{ name: 'POSTCOPY_RUN' }, '08 0005 0000'],
  [
    { name: 'POSTCOPY_RAM_DISCARD', block: 'm0', ranges: [{ start: 0x1_0000_0000, length: 0x200000 }] },
    '08 0006 0015 00 02 6d30 00 0000000100000000 0000000000200000',
  ],
  [{ name: 'PACKAGED', length: 13041 }, '08 0007 0004 000032f1'],
  [{ name: 'ENABLE_COLO' }, '08 0008 0000'],
  [{ name: 'POSTCOPY_RESUME' }, '08 0009 0000'],
  [{ name: 'RECV_BITMAP', block: 'pc.ram' }, '08 000a 0007 06 70632e72616d'],
  [{ name: 'SWITCHOVER_START' }, '08 000b 0000'],
]

test('commands, byte for byte, both ways', () => {
  for (const [command, hex] of COMMAND_BYTES) {
    assert.equal(hexOf(encodeCommand(command)), hex.replaceAll(' ', ''))
    assert.deepEqual(decodeCommand(fromHex(hex)), command)
  }
})

test('bad commands are refused, at the offset of what is wrong', () => {
  const cases: readonly [string, string, number][] = [
    ['unknown id 0', '08 0000 0000', 1],
    ['unknown id 12', '08 000c 0000', 1],
    ['length of OPEN_RETURN_PATH', '08 0001 0001 00', 3],
    ['length of PING', '08 0002 0003 000000', 3],
    ['length of ADVISE', '08 0003 0008 0000000000001000', 13],
    ['ADVISE beyond 2^53', '08 0003 0010 ffffffffffffffff 0000000000001000', 5],
    ['version of DISCARD', '08 0006 0015 01 02 6d30 00 0000000000000000 0000000000200000', 5],
    ['terminator of DISCARD', '08 0006 0015 00 02 6d30 01 0000000000000000 0000000000200000', 9],
    ['DISCARD without a range', '08 0006 0005 00 02 6d30 00', 10],
    ['DISCARD with half a range', '08 0006 000d 00 02 6d30 00 0000000000000000', 18],
    ['name of RECV_BITMAP too long', '08 000a 0002 05 61', 6],
    ['rest behind RECV_BITMAP', '08 000a 0003 01 61 62', 7],
    ['RECV_BITMAP without a name', '08 000a 0001 00', 5],
  ]
  for (const [what, hex, offset] of cases) {
    assert.throws(() => decodeCommand(fromHex(hex)), { code: 'PROTOCOL', offset }, what)
  }
})

test('a wrong length is refused before its body is waited for', () => {
  assert.throws(() => decodeCommand(fromHex('08 0002 ffff')), ProtocolError)
})

test('a command that ends early is an error of the channel', () => {
  assert.throws(() => decodeCommand(fromHex('08 0002 0004 0000')), ChannelError)
})

test('DISCARD holds thousands of ranges, but not more than its length can say', () => {
  const discard = (count: number): Command => ({
    name: 'POSTCOPY_RAM_DISCARD',
    block: 'b',
    ranges: Array.from({ length: count }, (_, i) => ({ start: i * 8192, length: 4096 })),
  })
  assert.deepEqual(decodeCommand(encodeCommand(discard(4095))), discard(4095))
  assert.throws(() => encodeCommand(discard(4096)), assert.AssertionError)
})

const block = fc
  .uint8Array({ minLength: 1, maxLength: 255 })
  .map((bytes) => Buffer.from(bytes).toString('latin1'))
const u32 = fc.nat(0xffff_ffff)
const message: fc.Arbitrary<ReturnMessage> = fc.oneof(
  fc.record({ name: fc.constantFrom('SHUT' as const, 'PONG' as const, 'RESUME_ACK' as const), value: u32 }),
  fc.record({ name: fc.constant('REQ_PAGES_ID' as const), start: fc.maxSafeNat(), length: u32, block }),
  fc.record({ name: fc.constant('REQ_PAGES' as const), start: fc.maxSafeNat(), length: u32 }),
  fc.record({
    name: fc.constant('RECV_BITMAP' as const),
    block,
    bitmap: fc.uint8Array({ minLength: 24, maxLength: 24 }),
  }),
  fc.constant({ name: 'SWITCHOVER_ACK' } as const),
)

test('return path: any messages, cut anywhere, come out as they went in', () => {
  fc.assert(
    fc.property(
      fc.array(message, { maxLength: 20 }),
      fc.array(fc.integer({ min: 1, max: 40 })),
      (sent, cuts) => {
        const bytes = Buffer.concat(sent.map(encodeReturnMessage))
        const got: ReturnMessage[] = []
        const parser = createReturnPathParser((one) => got.push(one), { expectedBitmapBytes: () => 24 })
        let at = 0
        for (const cut of [...cuts, bytes.length]) {
          parser.feed(bytes.subarray(at, at + cut))
          at += cut
        }
        parser.end()
        assert.deepEqual(
          got.map((one) => ({ ...one })),
          sent.map((one) => ({ ...one })),
        )
      },
    ),
  )
})

test('return path: bad messages are refused, at the offset of what is wrong', () => {
  const cases: readonly [string, string, number][] = [
    ['unknown type 0', '0000 0000', 0],
    ['unknown type 8', '0008 0000', 0],
    ['length of SHUT', '0001 0005 0000000000', 2],
    ['length of REQ_PAGES', '0004 000b', 2],
    ['longer than any message', '0003 0201', 2],
    ['no name', '0003 000d 0000000000001000 00001000 00', 16],
    ['name shorter than the body', '0003 000f 0000000000001000 00001000 01 61 62', 18],
    ['bitmap of another size', '0005 0002 01 61 0000000000000008', 6],
    ['bitmap of a size beyond 2^53', '0005 0002 01 61 ff00000000000010', 6],
    ['bitmap of an unknown block', '0005 0002 01 62 0000000000000010', 6],
    ['end mark', `0005 0002 01 61 0000000000000010 ${'00'.repeat(16)} 0123456789abcdee`, 30],
  ]
  for (const [what, hex, offset] of cases) {
    const parser = createReturnPathParser(unexpected, {
      expectedBitmapBytes: (name) => (name === 'a' ? 16 : undefined),
    })
    assert.throws(() => parser.feed(fromHex(hex)), { code: 'PROTOCOL', offset }, what)
  }
})

test('return path: offsets count from the start of the stream', () => {
  const parser = createReturnPathParser(() => {})
  parser.feed(fromHex('0002 0004 00000001 00'))
  assert.throws(() => parser.feed(fromHex('09 0000')), { code: 'PROTOCOL', offset: 8 })
})

test('return path: a bitmap that nobody asked for is refused', () => {
  const parser = createReturnPathParser(unexpected)
  assert.throws(() => parser.feed(encodeReceivedBitmap('pc.ram', new Uint8Array(8))), ProtocolError)
})

test('return path: an end is only legal between messages', () => {
  const parser = createReturnPathParser(() => {})
  parser.end()
  parser.feed(fromHex('0002 0004 00000001'))
  parser.end()
  parser.feed(fromHex('00'))
  assert.throws(() => parser.end(), ChannelError)
  parser.feed(fromHex('02 0004 000000'))
  assert.throws(() => parser.end(), ChannelError)
})

test('bitmaps are whole 64-bit words', () => {
  assert.deepEqual([1, 64, 65, 65_536].map(receivedBitmapBytes), [8, 8, 16, 8192])
  assert.throws(() => encodeReceivedBitmap('a', new Uint8Array(9)), assert.AssertionError)
})
