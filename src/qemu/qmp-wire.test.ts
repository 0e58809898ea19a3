import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { lineSplitter, parseMessage } from './qmp-wire.js'

function splitInto(chunks: readonly Buffer[]): [string, number][] {
  const lines: [string, number][] = []
  const split = lineSplitter((line, offset) => lines.push([line, offset]))
  for (const chunk of chunks) split(chunk)
  return lines
}

test('lines are the same wherever the stream is cut, also inside a character', () => {
  const bytes = Buffer.from('{"a":"é"}\r\n\r\n{"b":2}\r\n{"unfinished":')
  const expected = [
    ['{"a":"é"}', 0],
    ['{"b":2}', 14],
  ]
  for (let cut = 0; cut <= bytes.length; cut++) {
    assert.deepEqual(splitInto([bytes.subarray(0, cut), bytes.subarray(cut)]), expected, `cut at ${cut}`)
  }
  assert.deepEqual(splitInto([...bytes].map((byte) => Buffer.of(byte))), expected)
})

test('a line of the greatest length passes; one byte more is refused before its end arrives', () => {
  const longest = Buffer.alloc(LIMITS.qmpLineBytesMax, 0x20)
  longest[0] = 0x78
  longest[longest.length - 1] = 0x0a
  assert.deepEqual(splitInto([longest]), [['x', 0]])
  const endless = lineSplitter(() => assert.fail('there is no line'))
  endless(Buffer.alloc(LIMITS.qmpLineBytesMax, 0x20))
  assert.throws(() => endless(Buffer.of(0x20)), ProtocolError)
})

test('the four kinds of message', () => {
  const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"},
    "capabilities": ["oob"]}}`
  assert.deepEqual(parseMessage(greeting, 0), {
    kind: 'greeting',
    version: { major: 7, minor: 2, micro: 22 },
    capabilities: ['oob'],
  })
  assert.deepEqual(parseMessage('{"return": {"running": true}, "id": 3}', 0), {
    kind: 'return',
    id: 3,
    value: { running: true },
  })
  assert.deepEqual(parseMessage('{"id": 4, "error": {"class": "GenericError", "desc": "no"}}', 0), {
    kind: 'failure',
    id: 4,
    errorClass: 'GenericError',
    description: 'no',
  })
  const event = '{"timestamp": {"seconds": 2, "microseconds": 5}, "event": "STOP"}'
  assert.deepEqual(parseMessage(event, 0), { kind: 'event', name: 'STOP', data: {}, timeUs: 2_000_005 })
})

test('what is no message is a ProtocolError that says where', () => {
  const bad = [
    '',
    '{',
    'null',
    '[]',
    '7',
    '{}',
    '{"QMP": 1}',
    '{"QMP": {"version": {}, "capabilities": []}}',
    '{"event": 1}',
    '{"event": "X", "data": []}',
    '{"return": {}}',
    '{"return": {}, "id": "7"}',
    '{"return": {}, "id": -1}',
    '{"error": {"class": "GenericError"}, "id": 1}',
  ]
  for (const line of bad) {
    assert.throws(
      () => parseMessage(line, 1234),
      (error) => error instanceof ProtocolError && error.offset === 1234,
      line,
    )
  }
})

test('any JSON at all is a message or a ProtocolError', () => {
  const key = fc.constantFrom('QMP', 'event', 'return', 'error', 'id', 'data', 'timestamp', 'class', 'desc')
  const { tree } = fc.letrec((tie) => ({
    tree: fc.oneof(
      { depthSize: 'small' },
      fc.constantFrom(null, 0, -1, 1e300, '', 'x'),
      fc.array(tie('tree')),
      fc.dictionary(key, tie('tree')),
    ),
  }))
  fc.assert(
    fc.property(tree, (value) => {
      try {
        parseMessage(JSON.stringify(value), 0)
      } catch (error) {
        assert.ok(error instanceof ProtocolError, String(error))
      }
    }),
  )
})
