// The captures are what their manifest says; what is in them is tested with the code that reads it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { listCaptures, readCapture } from './captures.js'

const HEADER = Buffer.from('5145564d0000000307', 'hex')
/** PONG 1 and SHUT 0: how a return path that went to its end begins and ends. */
const PONG_1 = Buffer.from('0002000400000001', 'hex')
const SHUT_0 = Buffer.from('0001000400000000', 'hex')

for (const capture of listCaptures()) {
  test(`capture ${capture.name}`, () => {
    const connections = readCapture(capture)
    assert.deepEqual(
      connections.map(({ forward, back }) => ({ forwardBytes: forward.length, backBytes: back.length })),
      capture.connections,
    )
    assert.deepEqual(connections[0]!.forward.subarray(0, HEADER.length), HEADER)
    if (!capture.name.includes('postcopy')) return
    const last = connections.at(-1)!
    assert.deepEqual(connections[0]!.back.subarray(0, PONG_1.length), PONG_1)
    assert.deepEqual(last.back.subarray(-SHUT_0.length), SHUT_0)
    // The last record is the end of the stream; a recovery has no header, and begins with a command.
    assert.equal(last.forward.at(-1), 0)
    if (connections.length > 1) assert.equal(last.forward[0], 0x08)
  })
}
