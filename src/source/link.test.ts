import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { ChannelError, ProtocolError } from '../errors.js'
import {
  AGAIN,
  acceptOn,
  closeFd,
  connectTo,
  listenOn,
  sendAll,
  shutdownChannel,
  socketPair,
  tryRead,
  trySend,
  unsentBytes,
} from '../os/channel.js'
import { mapAnonymous } from '../os/mapping.js'
import { createWake } from '../os/wake.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import { createLink, type Link } from './link.js'

const options = { timeout: 30_000 }
const SILENCE_MS = 240

function overTcp(): readonly [number, number] {
  const wake = createWake()
  const listener = listenOn('tcp:127.0.0.1:0')
  const near = connectTo(listener.uri, { timeoutMs: 1000 })
  const far = acceptOn(listener.fd, wake.fd, 1000) as number
  listener.close()
  wake.close()
  return [near, far]
}

function connectedLink(t: TestContext, [near, far] = overTcp()) {
  const wake = createWake()
  const seen: unknown[] = []
  const gate = { open: true }
  const link = createLink(near, wake, SILENCE_MS, {
    onRequest: (...request) => void seen.push(request),
    canTakeRequests: () => gate.open,
    onPong: (value) => void seen.push(value),
    onWake: () => void seen.push('wake'),
    expectedBitmapBytes: (block) => (block === 'awaited' ? 8 : undefined),
    onBitmap: (block, bitmap) => void seen.push([block, bitmap.length]),
    onResumeAck: (value) => void seen.push(['ack', value]),
  })
  t.after(() => {
    link.close()
    for (const fd of [near, far]) closeFd(fd)
    wake.close()
  })
  const send = (...messages: ReturnMessage[]) =>
    sendAll(far, Buffer.concat(messages.map(encodeReturnMessage)))
  return { link, wake, near, far, seen, send, gate }
}

test('requests without a name are for the block of the one before', options, (t) => {
  const { link, send, seen } = connectedLink(t)
  send(
    { name: 'REQ_PAGES_ID', start: 0, length: 4096, block: 'a' },
    { name: 'REQ_PAGES', start: 4096, length: 4096 },
    { name: 'PONG', value: 9 },
    { name: 'REQ_PAGES_ID', start: 0, length: 8192, block: 'b' },
    { name: 'REQ_PAGES', start: 8192, length: 4096 },
  )
  link.pump(1000)
  assert.deepEqual(seen, [['a', 0, 4096], ['a', 4096, 4096], 9, ['b', 0, 8192], ['b', 8192, 4096]])
})

test('the first request must name its block', options, (t) => {
  const { link, send } = connectedLink(t)
  send({ name: 'REQ_PAGES', start: 0, length: 4096 })
  assert.throws(() => link.pump(1000), ProtocolError)
})

test('answers of a recovery reach who awaits them; a bitmap that nobody awaits is refused', options, (t) => {
  const { link, seen, send } = connectedLink(t)
  send({ name: 'RECV_BITMAP', block: 'awaited', bitmap: new Uint8Array(8) }, { name: 'RESUME_ACK', value: 1 })
  link.pump(1000)
  assert.deepEqual(seen, [
    ['awaited', 8],
    ['ack', 1],
  ])
  send({ name: 'RECV_BITMAP', block: 'other', bitmap: new Uint8Array(8) })
  assert.throws(() => link.pump(1000), ProtocolError)
})

test('the end without SHUT is the end of the destination', options, (t) => {
  const { link, far } = connectedLink(t)
  shutdownChannel(far)
  assert.throws(() => link.pump(1000), ChannelError)
})

test('after SHUT 0 the destination may go; any other value says that it failed', options, (t) => {
  const good = connectedLink(t)
  good.send({ name: 'SHUT', value: 0 })
  shutdownChannel(good.far)
  good.link.pumpUntil(() => good.link.shut() !== undefined, 1000, 'SHUT')
  assert.equal(good.link.shut(), 0)
  assert.throws(() => good.link.pump(10), ProtocolError, 'who waits for more has not sent everything yet')
  const bad = connectedLink(t)
  bad.send({ name: 'SHUT', value: 1 })
  assert.throws(() => bad.link.pump(1000), /destination reports that it failed/)
  assert.equal(bad.link.shut(), 1)
})

test('no requests are read while none can be taken', options, (t) => {
  const { link, send, seen, gate } = connectedLink(t)
  gate.open = false
  send({ name: 'PONG', value: 1 })
  link.pump(20)
  assert.deepEqual(seen, [])
  gate.open = true
  link.pump(1000)
  assert.deepEqual(seen, [1])
})

test('a look takes in what was said, and waits for nothing', options, (t) => {
  const { link, send, seen, gate, wake } = connectedLink(t, socketPair())
  link.look()
  wake.signal()
  gate.open = false
  send({ name: 'PONG', value: 1 }, { name: 'PONG', value: 2 })
  link.look()
  assert.deepEqual(seen, [])
  gate.open = true
  link.look()
  assert.deepEqual(seen, [1, 2], 'and what others say is for who waits')
})

test('a wake ends the wait and is heard once', options, (t) => {
  const { link, wake, seen } = connectedLink(t)
  wake.signal()
  link.pump(-1)
  link.pump(10)
  assert.deepEqual(seen, ['wake'])
})

test('waiting in vain ends with what was waited for', options, (t) => {
  const { link } = connectedLink(t)
  assert.throws(() => link.pumpUntil(() => false, 50, 'a sign of life'), /within 50 ms: a sign of life/)
})

/** Waits for the peer until that is given up; how long it took, ms. */
function untilGivenUp(link: Link): number {
  const startMs = performance.now()
  assert.throws(
    () => {
      for (;;) link.pumpPeer('to do something')
    },
    (error: Error) => error instanceof ChannelError && /was awaited to do something/.test(error.message),
  )
  return performance.now() - startMs
}

test('a peer that says nothing is waited for, and not for ever', options, (t) => {
  const { link, wake } = connectedLink(t)
  link.pump(SILENCE_MS) // when nothing is awaited of it, silence does not count

  wake.signal() // what others say is no sign of the peer
  const tookMs = untilGivenUp(link)
  assert(tookMs >= SILENCE_MS - 5 && tookMs < 4 * SILENCE_MS, `${tookMs} ms`)
})

test('a peer that says something now and then is waited for', options, (t) => {
  const { link, send, seen } = connectedLink(t)
  const startMs = performance.now()
  for (let value = 0; performance.now() - startMs < 3 * SILENCE_MS; value++) {
    send({ name: 'PONG', value })
    assert(link.pumpPeer('PONG'))
    for (const lookMs = performance.now(); performance.now() - lookMs < SILENCE_MS / 2; )
      link.pumpPeer('PONG')
  }
  assert(seen.length > 3)
})

test('a peer that takes bytes is waited for while it does', options, (t) => {
  const { link, near, far } = connectedLink(t, socketPair())
  const bytes = mapAnonymous(4096)
  t.after(() => bytes.unmap())
  while (trySend(near, bytes.address, bytes.length) !== AGAIN);
  const startMs = performance.now()
  while (performance.now() - startMs < 2 * SILENCE_MS) {
    link.pumpPeer('to read')
    tryRead(far, bytes.address, bytes.length)
  }
  assert(unsentBytes(near) > 0, 'the test has taken all there was')
  untilGivenUp(link)
})
