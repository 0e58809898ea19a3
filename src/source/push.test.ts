// What still goes when everything has been pushed.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { ChannelError } from '../errors.js'
import { AHEAD_MS, LOOK_PAGES } from '../order/orders.js'
import { AGAIN, sendAll, tryRead } from '../os/channel.js'
import { nativeBuffer } from '../os/memory.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import { RAM_END } from '../wire/ram-stream.js'
import { PAGES, postcopyMigration, type Shape } from './outgoing.fixture.js'
import { PING } from './outgoing.js'
import { pushAhead, pushRemaining, serveBehindTheEnd } from './push.js'
import { serveRequests } from './send-pages.js'

const options = { timeout: 30_000 }
const HAS_ALL: ReturnMessage = { name: 'PONG', value: PING.all }

const askFor = (page: number): ReturnMessage => ({
  ...{ name: 'REQ_PAGES_ID', block: 'a', start: page * 4096, length: 4096 },
})

/** All is pushed, and the stream is ended: zero pages were not among it. */
function pushed(t: TestContext, shape: Shape = {}) {
  const {
    outgoing: o,
    far,
    urgentFar,
  } = postcopyMigration(t, { pushZeroPages: false, preempt: true, ...shape })
  o.dirty[0]!.setRange(0, PAGES)
  pushRemaining(o)
  return {
    o,
    say: (...messages: readonly ReturnMessage[]) => {
      for (const message of messages) sendAll(far, encodeReturnMessage(message))
    },
    /** The zero pages that have come over the second connection, and whether that has ended. */
    arrived() {
      const { address, bytes, length } = nativeBuffer(1024)
      const count = tryRead(urgentFar, address, length)
      const got = Buffer.from(bytes.subarray(0, count === AGAIN ? 0 : count))
      const ended = got.subarray(-8).equals(RAM_END)
      const pages: number[] = []
      // The name of the block stands in the first record; a byte of content in each.
      for (let at = 0; at < got.length - (ended ? 8 : 0); at += at === 0 ? 8 + 2 + 1 : 8 + 1)
        pages.push(Number(got.readBigUInt64BE(at) >> 12n))
      return { pages, ended }
    },
  }
}

test('a page that is asked for does not wait for the end of a chunk', options, (t) => {
  const reads: number[] = []
  const { outgoing, far, urgentFar } = postcopyMigration(t, {
    preempt: true,
    read({ address }, page, pages) {
      reads.push(page)
      if (page === LOOK_PAGES) throw new Error('enough')
      if (page === 0) sendAll(far, encodeReturnMessage(askFor(PAGES - 1)))
      return { address: address + page * 4096, pages, lasting: false }
    },
  })
  outgoing.populated[0]!.setRange(0, PAGES)
  outgoing.dirty[0]!.setRange(0, PAGES)
  Object.assign(outgoing.window, { room: () => 2 ** 20 })
  Object.assign(outgoing.yielding, { asking: () => true })
  assert.throws(() => pushRemaining(outgoing), { message: 'enough' })
  assert.deepEqual(reads, [0, PAGES - 1, LOOK_PAGES])
  const { address, length, bytes } = nativeBuffer(8192)
  assert.equal(tryRead(urgentFar, address, length), 8 + 2 + 4096, 'on the connection for it')
  assert.equal(Buffer.from(bytes).readBigUInt64BE() >> 12n, BigInt(PAGES - 1))
})

test('before the device state goes what is likely, until that has taken its time', options, (t) => {
  const recorded = Uint32Array.from({ length: PAGES / 2 }, (_, i) => 2 * i)
  const read: Shape['read'] = ({ address }, page) => ({
    address: address + page * 4096,
    pages: 1,
    lasting: false,
  })
  const at = (shape: Shape = {}) => {
    const { outgoing: o } = postcopyMigration(t, { order: 'recorded', recorded, read, ...shape })
    for (const bitmap of [o.populated[0]!, o.dirty[0]!]) bitmap.setRange(0, PAGES)
    pushAhead(o)
    return { o, left: recorded.filter((page) => o.dirty[0]!.get(page)).length }
  }
  const all = at()
  assert.equal(all.left, 0)
  assert.equal(all.o.dirty[0]!.count(), PAGES / 2, 'and nothing else')
  const slowly: Shape['read'] = (...asked) => {
    for (const endMs = performance.now() + AHEAD_MS; performance.now() < endMs; );
    return read(...asked)
  }
  assert.equal(at({ read: slowly }).left, PAGES / 2 - LOOK_PAGES, 'one chunk was sent')
  assert.equal(at({ read: slowly, aheadMs: 1000 }).left, 0, 'or as many as there is time for')
  assert.equal(at({ aheadMs: 0 }).left, PAGES / 2)
  const limit = (LOOK_PAGES * 4096 * 1000) / 20 // a chunk in 20 ms
  assert.equal(at({ limit }).left, PAGES / 2 - LOOK_PAGES, 'a limit holds for them, too')
  assert.equal(at({ limit, aheadMs: 1000 }).left, 0)
})

test('a page has gone before others that go along are read', options, (t) => {
  const received: number[] = []
  const buffer = nativeBuffer(64 * 1024) // its memory is there for as long as it is
  const receive = (): number => tryRead(urgentFar, buffer.address, buffer.length)
  const { outgoing, urgentFar } = postcopyMigration(t, {
    ...{ preempt: true, order: 'fault-around' },
    read(block, page, pages) {
      received.push(page, receive())
      return { address: block.address + page * 4096, pages, lasting: false }
    },
  })
  outgoing.populated[0]!.setRange(0, 16)
  outgoing.dirty[0]!.setRange(0, 16)
  outgoing.order.request(0, 5, 1)
  serveRequests(outgoing)
  assert.deepEqual(received, [5, AGAIN, 6, 8 + 2 + 4096, 0, AGAIN])
  assert.equal(receive(), 15 * (8 + 4096))
})

test('behind the end of the stream zero pages are served until it has been taken in', options, (t) => {
  const { o, say, arrived } = pushed(t)
  say(askFor(5), HAS_ALL, askFor(3))
  serveBehindTheEnd(o)
  assert.deepEqual(arrived(), { pages: [5, 3], ended: true })
})

test('where zero pages have gone as well, that connection ends at once', options, (t) => {
  const { o, arrived } = pushed(t, { pushZeroPages: true })
  serveBehindTheEnd(o)
  assert.deepEqual(arrived(), { pages: [], ended: true })
})

test('as long as the end may be on its way, the connection for requested pages stays', options, (t) => {
  const { o, say, arrived } = pushed(t)
  say(askFor(5))
  assert.throws(() => serveBehindTheEnd(o), ChannelError)
  assert.deepEqual(arrived(), { pages: [5], ended: false })
})

test('a destination that says it is done is not waited for', options, (t) => {
  const { o, say } = pushed(t)
  say({ name: 'SHUT', value: 0 })
  const startMs = performance.now()
  serveBehindTheEnd(o)
  assert(performance.now() - startMs < 500)
  assert.equal(o.link.shut(), 0)
})

test('what one connection said does not hold for the next', options, (t) => {
  const { o, say, arrived } = pushed(t)
  o.pongs.set(PING.all, 0)
  pushRemaining(o)
  say(askFor(5))
  assert.throws(() => serveBehindTheEnd(o), ChannelError)
  assert.deepEqual(arrived(), { pages: [5], ended: false })
})
