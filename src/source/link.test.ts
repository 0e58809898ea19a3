import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { ChannelError, ProtocolError } from '../errors.js'
import { acceptOn, closeFd, connectTo, listenOn, sendAll, shutdownChannel } from '../os/channel.js'
import { createWake } from '../os/wake.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import { createLink } from './link.js'

const options = { timeout: 30_000 }

function connectedLink(t: TestContext) {
  const wake = createWake()
  const listener = listenOn('tcp:127.0.0.1:0')
  const near = connectTo(listener.uri, { timeoutMs: 1000 })
  const far = acceptOn(listener.fd, wake.fd, 1000) as number
  const seen: unknown[] = []
  const gate = { open: true }
  const link = createLink(near, wake, {
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
    listener.close()
    wake.close()
  })
  const send = (...messages: ReturnMessage[]) =>
    sendAll(far, Buffer.concat(messages.map(encodeReturnMessage)))
  return { link, wake, far, seen, send, gate }
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
  good.link.pumpUntil(() => good.link.shut !== undefined, 1000, 'SHUT')
  assert.equal(good.link.shut, 0)
  assert.throws(() => good.link.pump(10), ProtocolError, 'who waits for more has not sent everything yet')
  const bad = connectedLink(t)
  bad.send({ name: 'SHUT', value: 1 })
  assert.throws(() => bad.link.pump(1000), /destination reports that it failed/)
  assert.equal(bad.link.shut, 1)
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
