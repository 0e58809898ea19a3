// Who may be the second connection, and how its records are taken: as they come, never waiting for the rest of one.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { ChannelError, ProtocolError } from '../errors.js'
import { closeFd, connectTo, listenOn, sendAll, shutdownChannel } from '../os/channel.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import { createRamRecord, RAM_END, RAM_FLAGS, readRamRecord, writeRamWord } from '../wire/ram-stream.js'
import type { StreamReader } from '../wire/reader.js'
import { urgentHello } from '../wire/urgent.js'
import type { Placer } from './placer.js'
import { createUrgentChannel } from './urgent-channel.js'

const options = { timeout: 20_000 }
const TOKEN = 0x123456

function channelUnderTest(t: TestContext, { postcopy = true } = {}) {
  const listener = listenOn('tcp:127.0.0.1:0')
  const seen: unknown[] = []
  const poll = createPoll(1)
  const fds: number[] = []
  let watched = -1
  let serve = (): void => {}
  const channel = createUrgentChannel({
    listenFd: listener.fd,
    stats: { urgentBytes: 0 },
    intake: {
      serveUrgent(fd, serveThere) {
        watched = fd
        serve = serveThere
        poll.set(0, fd, POLL_EVENTS.in)
      },
    },
    isPostcopy: () => postcopy,
    flushFirst: () => void seen.push('flush first'),
    makeLoader: (reader: StreamReader) => ({
      placer: { flush: () => void seen.push('flush'), close() {}, abandon() {} } as unknown as Placer,
      loader: {
        loadBody: assert.fail,
        loadRecord() {
          const record = createRamRecord()
          readRamRecord(reader, record)
          seen.push(record.kind)
          return record.kind !== 'eos'
        },
      },
    }),
    onOpen(fd, token) {
      fds.push(fd)
      seen.push(['open', token])
    },
    onEnd: () => void seen.push('end'),
  })
  const connect = (): number => {
    const fd = connectTo(listener.uri, { timeoutMs: 1000 })
    fds.push(fd)
    return fd
  }
  /** Serves whatever comes within a moment. */
  const settle = (): void => {
    while (watched >= 0 && poll.wait(50) > 0) serve()
  }
  t.after(() => {
    channel.close()
    for (const fd of fds) closeFd(fd)
    listener.close()
  })
  return { channel, connect, settle, seen }
}

/** A page record that names its block. */
function page(): Uint8Array {
  const bytes = new Uint8Array(8 + 2 + 4096)
  writeRamWord(new DataView(bytes.buffer), 0, 4096, RAM_FLAGS.PAGE)
  bytes.set([1, 'a'.charCodeAt(0)], 8)
  return bytes
}

test('who says the number is taken, whoever came before', options, (t) => {
  const { channel, connect, settle, seen } = channelUnderTest(t)
  assert(channel.expect(TOKEN))
  sendAll(connect(), urgentHello(TOKEN + 1))
  settle()
  shutdownChannel(connect())
  settle()
  sendAll(connect(), Buffer.from('GET'))
  settle()
  assert.deepEqual(seen, [])
  const fd = connect()
  const hello = urgentHello(TOKEN)
  sendAll(fd, hello.subarray(0, 4))
  settle()
  sendAll(fd, hello.subarray(4))
  settle()
  assert.deepEqual(seen, [['open', TOKEN]])
})

test('a record is read when it is there, and not waited for', options, (t) => {
  const { channel, connect, settle, seen } = channelUnderTest(t)
  assert(channel.expect(TOKEN))
  const fd = connect()
  sendAll(fd, urgentHello(TOKEN))
  settle()
  for (const part of [page().subarray(0, 5), page().subarray(5, 9), page().subarray(9, 4000)]) {
    sendAll(fd, part)
    settle()
  }
  assert(!seen.includes('page'))
  sendAll(fd, Buffer.concat([page().subarray(4000), page(), RAM_END]))
  settle()
  assert.deepEqual(seen.filter((each) => each !== 'flush' && each !== 'flush first').slice(1), [
    'page',
    'page',
    'eos',
    'end',
  ])
})

test('without a number the next one is it: a QEMU', options, (t) => {
  const { channel, connect, settle, seen } = channelUnderTest(t)
  assert(channel.expect())
  connect()
  settle()
  assert.deepEqual(seen, [['open', undefined]])
})

test('it ends without having said so: the connection is lost', options, (t) => {
  const { channel, connect, settle } = channelUnderTest(t)
  assert(channel.expect(TOKEN))
  const fd = connect()
  sendAll(fd, urgentHello(TOKEN))
  settle()
  shutdownChannel(fd)
  assert.throws(settle, ChannelError)
})

test('there is nothing urgent before the switch, but its end', options, (t) => {
  for (const [bytes, isRefused] of [
    [page(), true],
    [RAM_END, false],
  ] as const) {
    const { channel, connect, settle } = channelUnderTest(t, { postcopy: false })
    assert(channel.expect(TOKEN))
    const fd = connect()
    sendAll(fd, Buffer.concat([urgentHello(TOKEN), bytes]))
    if (isRefused) assert.throws(settle, ProtocolError)
    else settle()
  }
})

test('one is expected once, and only in time', options, (t) => {
  const { channel } = channelUnderTest(t)
  assert(!channelUnderTest(t).channel.settle())
  assert(channel.expect(TOKEN))
  assert(channel.settle())
  assert(!channel.expect(TOKEN))
  const late = channelUnderTest(t).channel
  late.settle()
  assert(!late.expect(TOKEN))
})
