import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { ChannelError, UsageError } from '../errors.js'
import {
  AGAIN,
  acceptOn,
  closeFd,
  connectTo,
  listenOn,
  peerProcess,
  readSome,
  sendAll,
  shutdownChannel,
  tryRead,
  trySend,
  trySendVector,
  unsentBytes,
} from './channel.js'
import { libc } from './libc.js'
import { LINUX } from './linux-abi.js'
import { type NativeBuffer, nativeBuffer, setU64 } from './memory.js'
import { createWake } from './wake.js'

/** The worker's part: block in one read and say what came of it. */
if (!isMainThread) {
  const { fd, shared } = workerData as { fd: number; shared: SharedArrayBuffer }
  const result = new Int32Array(shared)
  const buffer = nativeBuffer(64)
  Atomics.store(result, 0, 1)
  Atomics.store(result, 1, readSome(fd, buffer.address, 64))
}

interface Pair {
  readonly left: number
  readonly right: number
  readonly buffer: NativeBuffer
}

/** Both ends of a connection; the tests close what they close themselves through `shutdownChannel`. */
function connected(t: TestContext, uri: string): Pair {
  const wake = createWake()
  const listener = listenOn(uri)
  const left = connectTo(listener.uri, { timeoutMs: 1000 })
  const right = acceptOn(listener.fd, wake.fd, 1000)
  assert(right !== 'woken')
  t.after(() => {
    listener.close()
    wake.close()
    closeFd(left)
    closeFd(right)
  })
  return { left, right, buffer: nativeBuffer(1 << 20) }
}

function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'farfault-channel-'))
  t.after(() => rmSync(folder, { recursive: true }))
  return folder
}

if (isMainThread) {
  const timeout = 10_000
  for (const uri of ['tcp:127.0.0.1:0', 'tcp:localhost:0', 'tcp:[::1]:0', 'unix']) {
    test(`bytes go both ways over ${uri}`, { timeout }, (t) => {
      const { left, right, buffer } = connected(t, uri === 'unix' ? `unix:${temporaryFolder(t)}/s` : uri)
      assert.equal(tryRead(right, buffer.address, 8), AGAIN)
      sendAll(left, Buffer.from('xhello').subarray(1))
      assert.equal(readSome(right, buffer.address, 3), 3)
      assert.equal(tryRead(right, buffer.address + 3, 100), 2)
      assert.equal(Buffer.from(buffer.bytes.subarray(0, 5)).toString(), 'hello')
      assert.equal(trySend(right, buffer.address, 5), 5)
      assert.equal(readSome(left, buffer.address + 8, 100), 5)
      shutdownChannel(left)
      assert.equal(readSome(right, buffer.address, 8), 0)
      assert.equal(tryRead(right, buffer.address, 8), 0)
      assert.throws(() => {
        for (;;) sendAll(right, Buffer.alloc(8)) // The first may still be taken.
      }, ChannelError)
    })
  }

  test('a vector is sent in order; a full socket takes a part, then says again', { timeout }, (t) => {
    const { left, right, buffer } = connected(t, 'tcp:127.0.0.1:0')
    buffer.bytes.set(Buffer.from('headpage'), 0)
    const iovec = nativeBuffer(32)
    setU64(iovec.words, 0, buffer.address + 4)
    setU64(iovec.words, 2, 4)
    setU64(iovec.words, 4, buffer.address)
    setU64(iovec.words, 6, 4)
    assert.equal(trySendVector(left, iovec.address, 2), 8)
    assert.equal(readSome(right, buffer.address + 16, 100), 8)
    assert.equal(Buffer.from(buffer.bytes.subarray(16, 24)).toString(), 'pagehead')

    setU64(iovec.words, 0, buffer.address)
    setU64(iovec.words, 2, buffer.length)
    let taken = 0
    for (;;) {
      const sent = trySendVector(left, iovec.address, 1)
      if (sent === AGAIN) break
      taken += sent
    }
    assert(unsentBytes(left) > 0)
    let read = 0
    while (read < taken) read += readSome(right, buffer.address, buffer.length)
    assert.equal(read, taken)
  })

  test('shutdown wakes a reader blocked on another thread', { timeout }, async (t) => {
    const { left } = connected(t, 'tcp:127.0.0.1:0')
    const shared = new SharedArrayBuffer(8)
    const result = new Int32Array(shared).fill(-7)
    const worker = new Worker(new URL(import.meta.url), { workerData: { fd: left, shared } })
    while (Atomics.load(result, 0) !== 1) await new Promise((resolve) => setTimeout(resolve, 5))
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.equal(Atomics.load(result, 1), -7)
    shutdownChannel(left)
    shutdownChannel(left)
    await new Promise((resolve) => worker.once('exit', resolve))
    assert.equal(Atomics.load(result, 1), 0)
  })

  test('nobody listens: the error names the URI and what to do', { timeout }, (t) => {
    const listener = listenOn('tcp:127.0.0.1:0')
    listener.close()
    assert.throws(
      () => connectTo(listener.uri, { timeoutMs: 1000 }),
      (e) =>
        e instanceof ChannelError && e.message.includes(listener.uri) && /start the receiver/.test(e.message),
    )
    assert.throws(
      () => connectTo(`unix:${temporaryFolder(t)}/none`, { timeoutMs: 10 }),
      /ENOENT.*start the receiver/,
    )
  })

  test('a wait for a connection ends by wake or by time', { timeout }, (t) => {
    const listener = listenOn('tcp:127.0.0.1:0')
    const wake = createWake()
    t.after(() => {
      listener.close()
      wake.close()
    })
    assert.throws(() => acceptOn(listener.fd, wake.fd, 20), ChannelError)
    wake.signal()
    assert.equal(acceptOn(listener.fd, wake.fd), 'woken')
    assert.equal(wake.drain(), true)
    assert.equal(wake.drain(), false)
  })

  test('a port that is taken', { timeout }, (t) => {
    const listener = listenOn('tcp:127.0.0.1:0')
    t.after(() => listener.close())
    assert.match(listener.uri, /^tcp:127\.0\.0\.1:[1-9]\d*$/)
    assert.throws(() => listenOn(listener.uri), /EADDRINUSE/)
  })

  test('who listens on a unix path: a process of the same user', (t) => {
    const { left } = connected(t, `unix:${temporaryFolder(t)}/s`)
    const tcp = connected(t, 'tcp:127.0.0.1:0')
    assert.equal(peerProcess(left), process.pid)
    assert.equal(peerProcess(tcp.left), undefined)
    if (process.geteuid!() !== 0) return
    process.seteuid!(65534)
    try {
      assert.equal(peerProcess(left), undefined, "another user's")
    } finally {
      process.seteuid!(0)
    }
  })

  test('a unix path: left behind is replaced, served is not, a file is not, and it is removed at the end', (t) => {
    const path = join(temporaryFolder(t), 'socket')
    const first = listenOn(`unix:${path}`)
    assert.throws(() => listenOn(`unix:${path}`), /another process listens/)
    closeFd(first.fd) // As if the process had died: the path stays.
    const second = listenOn(`unix:${path}`)
    second.close()
    second.close()
    assert(!existsSync(path))
    writeFileSync(path, 'precious')
    assert.throws(() => listenOn(`unix:${path}`), UsageError)
    assert(existsSync(path))
  })

  test('fd: takes sockets only, listening or connected', { timeout }, (t) => {
    assert.throws(() => connectTo('fd:999999', { timeoutMs: 1 }), UsageError)
    const wake = createWake()
    assert.throws(() => listenOn(`fd:${wake.fd}`), UsageError)
    const { left, right, buffer } = connected(t, 'tcp:127.0.0.1:0')
    assert.equal(connectTo(`fd:${left}`, { timeoutMs: 1 }), left)
    const again = acceptOn(listenOn(`fd:${right}`).fd, wake.fd)
    assert(again !== 'woken' && again !== right)
    sendAll(left, Buffer.from('a'))
    assert.equal(readSome(again, buffer.address, 8), 1)
    closeFd(again)
    wake.close()
  })
}

test('a TCP connection sends a lost packet again soon, where the kernel can be told so', (t) => {
  const listener = listenOn('tcp:127.0.0.1:0')
  const near = connectTo(listener.uri, { timeoutMs: 1000 })
  t.after(() => {
    closeFd(near)
    listener.close()
  })
  const microseconds = (fd: number, option: number): number | undefined => {
    const value = nativeBuffer(8)
    const length = nativeBuffer(8)
    length.words[0] = 4
    const { getsockopt } = libc()
    return getsockopt(fd, LINUX.IPPROTO_TCP, option, value.address, length.address) === 0
      ? value.words[0]
      : undefined
  }
  for (const option of [LINUX.TCP_RTO_MIN_US, LINUX.TCP_DELACK_MAX_US]) {
    const usual = microseconds(listener.fd, option)
    if (usual === undefined) return t.diagnostic('this kernel has no such option')
    assert(microseconds(near, option)! < usual / 2, `${microseconds(near, option)} of ${usual} µs`)
  }
})
