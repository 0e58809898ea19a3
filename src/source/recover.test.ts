// What the answers of a recovery make of the bitmaps, and that nobody else may answer so.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { ChannelError, ProtocolError, UsageError } from '../errors.js'
import { createMachine } from '../machine.js'
import { orderSpec } from '../order/orders.js'
import { closeFd, releaseChannel, sendAll, socketPair } from '../os/channel.js'
import { mapAnonymous } from '../os/mapping.js'
import { createWake } from '../os/wake.js'
import { numberBlocks } from '../ram/block.js'
import { createStats, statsBytes } from '../stats.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import type { Origin } from './origin.js'
import { createOutgoing, type Outgoing, type OutgoingParts, PING, sentBytes } from './outgoing.js'
import { canRecover, type Reconnected, recover } from './recover.js'
import { SOURCE_STATS } from './report.js'
import { assertRecoverable } from './start-source.js'
import { SOURCE_STATUS } from './status.js'

/** Not a whole number of words. */
const PAGES = 70
const options = { timeout: 30_000 }

function lostMigration(t: TestContext, { pushZeroPages = true, recoverTimeMs = 5000 } = {}) {
  const ram = mapAnonymous(PAGES * 4096)
  const [near, far] = socketPair()
  const wake = createWake()
  const status = createMachine('source', SOURCE_STATUS, new Int32Array(1), 0)
  for (const event of ['migrate', 'ready', 'switchover', 'packageSent'] as const) status.step(event)
  const parts: OutgoingParts = {
    fd: near,
    urgentFd: undefined,
    wake,
    options: {
      ...{ configuration: { machine: 'm' }, ramSectionId: 1, postcopy: 'now', downtimeLimitMs: 0 },
      ...{ maxBandwidth: 0, maxPostcopyBandwidth: 0, setupTimeoutMs: 1000, skip: [] },
      ...{ preempt: false, urgent: false, order: orderSpec('linear') },
      ...{ push: { on: true, quietMs: 0, patienceMs: 0 }, recoverTimeMs, silenceTimeoutMs: undefined },
    },
    blocks: numberBlocks([{ name: 'a', length: PAGES * 4096, pageSize: 4096, address: ram.address }]),
    origin: { pushZeroPages, release() {} } as unknown as Origin,
    status,
    stats: createStats(SOURCE_STATS, new SharedArrayBuffer(statsBytes(SOURCE_STATS))),
    silenceMs: 1000,
    takeOrders: () => [],
  }
  const lost = createOutgoing(parts)
  lost.commit()
  t.after(() => {
    lost.close()
    for (const fd of [near, far]) closeFd(fd)
    wake.close()
    ram.unmap()
  })
  return { lost, parts, far }
}

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
  const { lost, parts } = lostMigration(t)
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
  const { lost, parts } = lostMigration(t, { pushZeroPages: false })
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
    const { lost, far } = lostMigration(t)
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
    const { lost, parts } = lostMigration(t)
    const { uri, far } = answered(...answers)
    t.after(() => closeFd(far))
    assert.throws(() => again(lost, parts, uri), ProtocolError)
  })
}

test('nobody listens: given up when the time is up, and not before', options, (t) => {
  const { lost, parts } = lostMigration(t, { recoverTimeMs: 300 })
  const startMs = performance.now()
  assert.throws(() => again(lost, parts, 'tcp:127.0.0.1:1'), ChannelError)
  assert(performance.now() - startMs >= 290)
  assert.equal(parts.status.state(), 'postcopy-paused')
})

test('only a connection that breaks after the switch is made again', options, (t) => {
  const { lost, parts } = lostMigration(t)
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
