// What the answers of a recovery make of the bitmaps, and that nobody else may answer so.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ChannelError, ProtocolError, UsageError } from '../errors.js'
import { closeFd, releaseChannel, sendAll, socketPair } from '../os/channel.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import { PAGES, postcopyMigration } from './outgoing.fixture.js'
import { type Outgoing, type OutgoingParts, PING, sentBytes } from './outgoing.js'
import { canRecover, type Reconnected, recover } from './recover.js'
import { assertRecoverable } from './start-source.js'

const options = { timeout: 30_000 }

/** The connection is lost, and made again at `uri`. */
function again(lost: Outgoing, parts: OutgoingParts, uri: string): Reconnected {
  parts.status.step('channelLost')
  return recover(parts, { uri }, { bytes: sentBytes(lost), pongs: lost.pongs, populated: lost.populated })
}

/** A connected socket to recover over, on which the destination has answered already. */
function answered(...answers: readonly ReturnMessage[]): { uri: string; far: number } {
  const [near, far] = socketPair()
  for (const answer of answers) sendAll(far, encodeReturnMessage(answer))
  return { uri: `fd:${near}`, far }
}

const ACK: ReturnMessage = { name: 'RESUME_ACK', value: 1 }

/** Bits set in the last words beyond the block mean nothing. */
const received = (...pages: number[]): ReturnMessage => {
  const bitmap = new Uint8Array(16)
  bitmap[15] = 0xff
  for (const page of pages) bitmap[page >> 3]! |= 1 << (page & 7)
  return { name: 'RECV_BITMAP', block: 'a', bitmap }
}

test('what has not been placed is sent again, whatever was sent before', options, (t) => {
  const { outgoing: lost, parts } = postcopyMigration(t)
  const { uri, far } = answered(received(0, 31, 32, 69), ACK)
  const { fd, outgoing: o } = again(lost, parts, uri)
  t.after(() => {
    o.close()
    releaseChannel(fd)
    closeFd(far)
  })
  assert.equal(parts.status.state(), 'postcopy-active')
  assert.equal(o.dirty[0]!.count(), PAGES - 4)
  assert.deepEqual(
    [0, 1, 30, 31, 32, 33, 68, 69].map((page) => o.dirty[0]!.get(page)),
    [false, true, true, false, false, true, true, false],
  )
  assert(o.pongs.has(PING.loaded), 'whoever says what it has runs the guest')
  assert(o.committed)
})

test('zero pages of an image are sent again only when they are asked for', options, (t) => {
  const { outgoing: lost, parts } = postcopyMigration(t, { pushZeroPages: false })
  lost.populated[0]!.setRange(10, 20)
  const { uri, far } = answered(received(10, 40), ACK)
  const { fd, outgoing: o } = again(lost, parts, uri)
  t.after(() => {
    o.close()
    releaseChannel(fd)
    closeFd(far)
  })
  assert.equal(o.dirty[0]!.count(), PAGES - 2)
  assert.equal(o.background[0]!.count(), 9)
  assert(!o.background[0]!.get(10) && o.background[0]!.get(11) && !o.background[0]!.get(20))
})

for (const answer of [received(1), ACK]) {
  test(`${answer.name} is refused from who was not asked`, options, (t) => {
    const { outgoing: lost, far } = postcopyMigration(t)
    sendAll(far, encodeReturnMessage(answer))
    assert.throws(() => lost.link.pump(1000), ProtocolError)
  })
}

for (const [what, ...answers] of [
  ['a bitmap of another length', { name: 'RECV_BITMAP', block: 'a', bitmap: new Uint8Array(8) }],
  ['a bitmap of no block', { name: 'RECV_BITMAP', block: 'b', bitmap: new Uint8Array(16) }],
  ['another answer to POSTCOPY_RESUME', received(), { name: 'RESUME_ACK', value: 2 }],
] as const) {
  test(`${what} ends the recovery`, options, (t) => {
    const { outgoing: lost, parts } = postcopyMigration(t)
    const { uri, far } = answered(...answers)
    t.after(() => closeFd(far))
    assert.throws(() => again(lost, parts, uri), ProtocolError)
  })
}

test('nobody listens: given up when the time is up, and not before', options, (t) => {
  const { outgoing: lost, parts } = postcopyMigration(t, { recoverTimeMs: 300 })
  const startMs = performance.now()
  assert.throws(() => again(lost, parts, 'tcp:127.0.0.1:1'), ChannelError)
  assert(performance.now() - startMs >= 290)
  assert.equal(parts.status.state(), 'postcopy-paused')
})

test('only a connection that breaks after the switch is made again', options, (t) => {
  const { outgoing: lost, parts } = postcopyMigration(t)
  assert(canRecover(lost, new ChannelError('lost')))
  assert(!canRecover(lost, new ProtocolError('bad', { offset: 0, record: 'r' })))
  parts.status.step('allSent')
  assert(!canRecover(lost, new ChannelError('lost')))
})

test('what cannot be recovered is said before it starts', () => {
  assertRecoverable({ uri: 'unix:/x' })
  assert.throws(() => assertRecoverable({ uri: 'nonsense' }), UsageError)
  assert.throws(() => assertRecoverable({ uri: 'unix:/x' }, { directory: '/x' }), UsageError)
  assert.throws(() => assertRecoverable('when-told', { directory: '/x' }), UsageError)
})
