import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { AGAIN, acceptOn, closeFd, connectTo, listenOn, socketPair, tryRead } from './channel.js'
import { mapAnonymous, viewOf } from './mapping.js'
import { nativeBuffer, setU64 } from './memory.js'
import { createReferencePipe } from './reference-pipe.js'
import { createWake } from './wake.js'

const PAGE = 4096
const PAGES = 1024
const options = { timeout: 60_000 }

function setUp(t: TestContext) {
  const [near, far] = socketPair()
  const memory = mapAnonymous(PAGES * PAGE)
  const pipe = createReferencePipe(near)!
  const table = nativeBuffer(PAGES * 16)
  const buffer = nativeBuffer(PAGES * PAGE)
  t.after(() => {
    pipe.close()
    for (const fd of [near, far]) closeFd(fd)
    memory.unmap()
  })
  for (let i = 0; i < PAGES; i++) {
    setU64(table.words, i * 4, memory.address + i * PAGE)
    setU64(table.words, i * 4 + 2, PAGE)
  }
  const received: Buffer[] = []
  function readAll(): void {
    for (let got = tryRead(far, buffer.address, buffer.length); got > 0; ) {
      received.push(Buffer.from(buffer.bytes.subarray(0, got)))
      got = tryRead(far, buffer.address, buffer.length)
    }
  }
  return {
    pipe,
    table,
    bytes: viewOf(memory.address, memory.length),
    received,
    readAll,
    unmap: () => memory.unmap(),
  }
}

test('all of it goes through a full socket, in order', options, (t) => {
  const { pipe, table, bytes, received, readAll } = setUp(t)
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i >>> 8) ^ i
  let fullTimes = 0
  function full(): void {
    fullTimes++
    readAll()
  }
  for (let page = 0; page < PAGES; ) {
    const taken = pipe.send(table.address + page * 16, Math.min(100, PAGES - page))
    if (taken === AGAIN) full()
    else {
      assert.equal(taken % PAGE, 0, 'a pipe takes whole references')
      page += taken / PAGE
    }
  }
  while (!pipe.drain()) full()
  readAll()
  assert.ok(fullTimes > 0, 'the socket was never full: nothing was tested')
  assert.ok(Buffer.concat(received).equals(bytes))
})

test('nothing is copied: what is changed before it is read arrives changed', options, (t) => {
  const { pipe, table, bytes, received, readAll } = setUp(t)
  bytes[0] = 1
  assert.equal(pipe.send(table.address, 1), PAGE)
  assert.ok(pipe.drain())
  bytes[0] = 2
  readAll()
  assert.equal(received[0]![0], 2)
})

test('a peer that is gone is a lost connection', options, (t) => {
  const { pipe, table } = setUp(t)
  const [near, far] = socketPair()
  const other = createReferencePipe(near)!
  closeFd(far)
  assert.throws(() => other.send(table.address, 1), { name: 'ChannelError', message: /EPIPE/ })
  other.close()
  closeFd(near)
  assert.equal(pipe.send(table.address, 1), PAGE)
})

test('memory that cannot be read is an error that says so', options, (t) => {
  const { pipe, table, unmap } = setUp(t)
  unmap()
  assert.throws(() => pipe.send(table.address, 1), { name: 'SystemError', message: /EFAULT.*cannot be read/ })
})

test('over TCP, where nobody knows when what was sent is read, there is none', options, (t) => {
  const wake = createWake()
  const listener = listenOn('tcp:127.0.0.1:0')
  const near = connectTo(listener.uri, { timeoutMs: 5000 })
  const far = acceptOn(listener.fd, wake.fd)
  t.after(() => {
    for (const fd of [near, far as number]) closeFd(fd)
    listener.close()
    wake.close()
  })
  assert.equal(createReferencePipe(near), undefined)
})
