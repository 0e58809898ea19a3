// Whoever cannot prove who he is gets nothing and places nothing: each is refused with an error that says why, the listener
// goes on, and the guest that was to be sent runs on.

import assert from 'node:assert/strict'
import { copyFileSync, readFileSync } from 'node:fs'
import {
  connect as connectPlain,
  createServer as createPlainServer,
  type Server,
  type Socket,
} from 'node:net'
import { join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ConnectionOptions, connect, createServer, type TlsOptions } from 'node:tls'
import { migrate, TlsError } from '../../src/index.js'
import { assertMoved, assertProgress, assertSoundAndEnd, MiB, startPattern } from '../engine/guests.js'
import { temporaryDirectory } from '../image/images.js'
import { issue, makeAuthority, revoke, writeKeys } from './certificates.js'
import { type Listening, listenOverTls } from './listening.js'

/** All are refused within a second, unless this machine has much else to do: how long it took is reported. */
const AT_ONCE_MS = 3000
/** Longer than the first byte may take. */
const SLOW_MS = 1200
const KEY = '00112233445566778899aabbccddeeff'
const OTHER_KEY = 'ff112233445566778899aabbccddeeff'
/** What a migration stream begins with. */
const STREAM = Buffer.from('5145564d00000003', 'hex')

const root = temporaryDirectory({ after } as never)
const at = (name: string): string => join(root, name)
const ca = makeAuthority(at('ca'))
const good = issue(ca, at('good'), ['client', 'server'])
const expired = issue(ca, at('expired'), ['client', 'server'], { days: -1 })
const revoked = issue(ca, at('revoked'), ['client'])
revoke(ca, revoked, 'client')
const guarded = issue(ca, at('guarded'), ['client', 'server'], {})
const elsewhere = issue(ca, at('elsewhere'), ['server'], { names: 'DNS:elsewhere.example,IP:192.0.2.1' })
const bare = issue(ca, at('bare'), [])
const stranger = issue(makeAuthority(at('other-ca')), at('stranger'), ['client', 'server'])
const keys = writeKeys(at('keys'), { qemu: KEY })
const otherUser = writeKeys(at('other-user'), { nobody: KEY, qemu: KEY })

const file = (directory: string, name: string): Buffer => readFileSync(join(directory, name))
const own = (directory: string, role: 'client' | 'server') => ({
  cert: file(directory, `${role}-cert.pem`),
  key: file(directory, `${role}-key.pem`),
})
const psk = (key: string, identity = 'qemu'): ConnectionOptions => ({
  ciphers: 'TLS_AES_128_GCM_SHA256',
  checkServerIdentity: () => undefined,
  pskCallback: () => ({ psk: Buffer.from(key, 'hex'), identity }),
})

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const endMs = performance.now() + AT_ONCE_MS; !condition(); await sleep(5)) {
    assert.ok(performance.now() < endMs, what)
  }
}

/** All that the peer gets, and resolves when its connection has been ended. */
async function received(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => chunks.push(chunk))
  socket.on('error', () => {})
  const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()).once('end', resolve))
  const late = sleep(AT_ONCE_MS).then(() => assert.fail('still connected'))
  await Promise.race([ended, late])
  socket.destroy()
  return Buffer.concat(chunks)
}

/** As a careless client: it takes whatever the server shows, and sends what it has at once. */
function intrude(port: number, options: ConnectionOptions): Promise<Buffer> {
  const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ...options })
  socket.on('secureConnect', () => socket.write(STREAM))
  return received(socket)
}

function intrudePlain(port: number, bytes: Uint8Array): Promise<Buffer> {
  const socket = connectPlain(port, '127.0.0.1', () => socket.write(bytes))
  return received(socket)
}

interface Intruder {
  readonly name: string
  readonly reason: string
  readonly message: RegExp
  come(port: number): Promise<Buffer>
}

const PLAIN: readonly Intruder[] = [
  {
    name: 'a migration in plain text',
    reason: 'plain-text',
    message: /it speaks no TLS/,
    come: (port) => intrudePlain(port, STREAM),
  },
  {
    name: 'two bytes',
    reason: 'plain-text',
    message: /it speaks no TLS/,
    come: (port) => intrudePlain(port, Buffer.from('hi')),
  },
  {
    name: 'a port scanner',
    reason: 'closed',
    message: /ended the connection/,
    come: async (port) => {
      const socket = connectPlain(port, '127.0.0.1', () => socket.end())
      return received(socket)
    },
  },
  {
    name: 'silence',
    reason: 'silent',
    message: /it has said nothing since it was connected/,
    come: (port) => received(connectPlain(port, '127.0.0.1')),
  },
  {
    name: 'TLS 1.2',
    reason: 'version',
    message: /no TLS 1\.3/,
    come: (port) => intrude(port, { maxVersion: 'TLSv1.2' }),
  },
]

const WITH_X509: readonly Intruder[] = [
  ...PLAIN,
  {
    name: 'no certificate',
    reason: 'no-certificate',
    message: /showed no certificate/,
    come: (port) => intrude(port, {}),
  },
  {
    name: "another CA's certificate",
    reason: 'untrusted',
    message: /not signed by the CA/,
    come: (port) => intrude(port, own(stranger, 'client')),
  },
  {
    name: 'an expired certificate',
    reason: 'expired',
    message: /has expired/,
    come: (port) => intrude(port, own(expired, 'client')),
  },
  {
    name: "a server's certificate",
    reason: 'purpose',
    message: /not made for this side/,
    come: (port) => intrude(port, own(good, 'server')),
  },
  {
    name: 'a pre-shared key',
    reason: 'no-certificate',
    message: /showed no certificate/,
    come: (port) => intrude(port, psk(KEY)),
  },
]

const WITH_KEYS: readonly Intruder[] = [
  ...PLAIN,
  {
    name: 'another key',
    reason: 'wrong-key',
    message: /pre-shared key is not the one/,
    come: (port) => intrude(port, psk(OTHER_KEY)),
  },
  {
    name: 'another user',
    reason: 'unknown-user',
    message: /no key for the user/,
    come: (port) => intrude(port, psk(KEY, 'nobody')),
  },
  {
    name: 'a certificate',
    reason: 'no-key',
    message: /did not prove that it has a pre-shared key/,
    come: (port) => intrude(port, own(good, 'client')),
  },
]

/** How long it took, ms. */
async function assertRefused({ incoming, refused, port }: Listening, intruder: Intruder): Promise<number> {
  const before = refused.length
  const startMs = performance.now()
  const got = await intruder.come(port)
  assert.equal(got.length, 0, `${intruder.name}: it was sent something`)
  await until(() => refused.length > before, `${intruder.name}: nothing was reported`)
  const tookMs = performance.now() - startMs
  const error = refused[before]!
  assert.ok(error instanceof TlsError && error.code === 'TLS')
  assert.equal(error.reason, intruder.reason, `${intruder.name}: ${error.message}`)
  assert.match(error.message, intruder.message)
  assert.match(error.message, /from 127\.0\.0\.1:\d+: /)
  assert.equal(refused.length, before + 1, `${intruder.name}: reported twice`)
  assert.equal(incoming.status, 'none', `${intruder.name}: it came through`)
  assert.equal(incoming.stats.bytes, 0)
  return Math.round(tookMs)
}

for (const [kind, directory, intruders] of [
  ['certificates', good, WITH_X509],
  ['pre-shared keys', keys, WITH_KEYS],
] as const) {
  test(`a receiver with ${kind} refuses one after the other, then takes who fits`, {
    timeout: 60_000,
  }, async (t) => {
    const listening = listenOverTls(t, directory, 'pattern')
    for (const intruder of intruders)
      t.diagnostic(`${intruder.name}: refused after ${await assertRefused(listening, intruder)} ms`)
    const guest = await startPattern({ blocks: [{ name: 'a', length: 2 * MiB }] })
    t.after(() => guest.destroy())
    const { incoming } = listening
    const migration = migrate(guest, { to: incoming.uri, tls: { directory }, postcopy: 'now' })
    const [source, destination] = await Promise.all([migration.done, incoming.done])
    await assertSoundAndEnd(assertMoved({ source, destination }))
  })
}

test('a certificate that ca-crl.pem revokes is refused, and another is not', {
  timeout: 60_000,
}, async (t) => {
  copyFileSync(join(ca.directory, 'ca-crl.pem'), join(guarded, 'ca-crl.pem'))
  const listening = listenOverTls(t, guarded, 'pattern')
  await assertRefused(listening, {
    name: 'a revoked certificate',
    reason: 'revoked',
    message: /is revoked/,
    come: (port) => intrude(port, own(revoked, 'client')),
  })
  const socket = connect({ port: listening.port, ca: file(good, 'ca-cert.pem'), ...own(good, 'client') })
  await new Promise<void>((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject))
  await sleep(200)
  assert.equal(listening.refused.length, 1)
  socket.destroy()
})

test('who fits, but goes away behind the handshake, does not end the listener', {
  timeout: 60_000,
}, async (t) => {
  const listening = listenOverTls(t, good, 'pattern')
  await assertRefused(listening, {
    name: 'a client that does not like the server',
    reason: 'refused',
    message: /closed the connection right behind the handshake/,
    come: async (port) => {
      const socket = connect({
        port,
        host: '127.0.0.1',
        ca: file(good, 'ca-cert.pem'),
        ...own(good, 'client'),
      })
      socket.on('secureConnect', () => socket.end())
      return received(socket)
    },
  })
  const guest = await startPattern({ blocks: [{ name: 'a', length: 2 * MiB }] })
  t.after(() => guest.destroy())
  const { incoming } = listening
  const migration = migrate(guest, { to: incoming.uri, tls: { directory: good }, postcopy: 'now' })
  const [source, destination] = await Promise.all([migration.done, incoming.done])
  await assertSoundAndEnd(assertMoved({ source, destination }))
})

test('many who say nothing do not keep out the one who fits', { timeout: 60_000 }, async (t) => {
  const listening = listenOverTls(t, good, 'pattern')
  const silent = Array.from({ length: 100 }, () =>
    connectPlain(listening.port, '127.0.0.1').on('error', () => {}),
  )
  t.after(() => {
    for (const socket of silent) socket.destroy()
  })
  await until(() => listening.refused.length >= 36, 'the oldest have not been sent away')
  const guest = await startPattern({ blocks: [{ name: 'a', length: 2 * MiB }] })
  t.after(() => guest.destroy())
  const { incoming } = listening
  const migration = migrate(guest, { to: incoming.uri, tls: { directory: good }, postcopy: 'now' })
  const [source, destination] = await Promise.all([migration.done, incoming.done])
  await assertSoundAndEnd(assertMoved({ source, destination }))
})

interface Impostor {
  readonly name: string
  readonly reason: string
  readonly message: RegExp
  /** Credentials of the source. */
  readonly directory: string
  readonly server: TlsOptions | 'banner' | 'closes' | 'silent'
  readonly hostname?: string
}

const pskServer = (key: string): TlsOptions => ({
  ciphers: 'TLS_AES_128_GCM_SHA256',
  pskCallback: (_, user) => (user === 'qemu' ? Buffer.from(key, 'hex') : null),
})
const CLIENT_CA = { ca: file(good, 'ca-cert.pem') }

const IMPOSTORS: readonly Impostor[] = [
  {
    name: "with another CA's certificate",
    reason: 'untrusted',
    message: /not signed by the CA/,
    directory: good,
    server: own(stranger, 'server'),
  },
  {
    name: 'with a certificate for another host',
    reason: 'hostname',
    message: /for another host \(.*192\.0\.2\.1/,
    directory: good,
    server: own(elsewhere, 'server'),
  },
  {
    name: 'with an expired certificate',
    reason: 'expired',
    message: /its certificate has expired/,
    directory: good,
    server: own(expired, 'server'),
  },
  {
    name: "with a client's certificate",
    reason: 'purpose',
    message: /not made for this side/,
    directory: good,
    server: own(good, 'client'),
  },
  {
    name: 'that wants a certificate, and gets none',
    reason: 'refused',
    message: /it wants a certificate from us/,
    directory: bare,
    server: { ...own(good, 'server'), ...CLIENT_CA, requestCert: true },
  },
  {
    name: "that finds the source's certificate wrong",
    reason: 'refused',
    message: /does not accept our certificate|not signed by a CA that it trusts/,
    directory: good,
    server: { ...own(good, 'server'), ca: file(stranger, 'ca-cert.pem'), requestCert: true },
  },
  {
    name: 'with a certificate instead of a key',
    reason: 'no-key',
    message: /did not prove that it has a pre-shared key/,
    directory: keys,
    server: own(good, 'server'),
  },
  {
    name: 'with another key',
    reason: 'refused',
    message: /our pre-shared key is not the one/,
    directory: keys,
    server: pskServer(OTHER_KEY),
  },
  {
    name: 'that says something in plain text',
    reason: 'plain-text',
    message: /speaks no TLS/,
    directory: good,
    server: 'banner',
  },
  {
    name: 'that hangs up',
    reason: 'closed',
    message: /speaks no TLS, or does not accept/,
    directory: good,
    server: 'closes',
  },
  {
    name: 'that says nothing',
    reason: 'silent',
    message: /it has said nothing since it was connected/,
    directory: good,
    server: 'silent',
  },
]

/** Answers what it got: behind TLS, or as it came. */
async function startImpostor(
  t: TestContext,
  kind: Impostor['server'],
): Promise<{ port: number; got: Buffer[]; connectedMs: Promise<number> }> {
  const got: Buffer[] = []
  const take = (socket: Socket): void => {
    socket.on('error', () => {})
    socket.on('data', (chunk) => {
      got.push(chunk)
      if (kind === 'closes') socket.end()
    })
    if (kind === 'banner') socket.write('220 mail.example ESMTP\r\n')
  }
  const server: Server = typeof kind === 'string' ? createPlainServer(take) : createServer(kind, take)
  t.after(() => server.close())
  const connectedMs = new Promise<number>((resolve) => {
    server.once('connection', (socket: Socket) => {
      const startMs = performance.now()
      socket.once('close', () => resolve(Math.round(performance.now() - startMs)))
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return { port: (server.address() as { port: number }).port, got, connectedMs }
}

for (const impostor of IMPOSTORS) {
  test(`a source sends nothing to a server ${impostor.name}`, { timeout: 60_000 }, async (t) => {
    const { port, got, connectedMs } = await startImpostor(t, impostor.server)
    const guest = await startPattern({ blocks: [{ name: 'a', length: 1 * MiB }] })
    t.after(() => guest.destroy())
    const report = await migrate(guest, {
      to: `tcp:127.0.0.1:${port}`,
      tls: { directory: impostor.directory },
    }).done
    const tookMs = await connectedMs
    t.diagnostic(`given up after ${tookMs} ms`)
    assert(tookMs < AT_ONCE_MS)
    assert.equal(report.ok, false)
    assert.ok(report.cause instanceof TlsError, String(report.cause?.stack))
    assert.equal(report.cause.reason, impostor.reason, report.error)
    assert.match(report.error!, impostor.message)
    assert.match(report.error!, /The guest runs on here/)
    assert.equal(report.guestHere, true)
    const sent = Buffer.concat(got)
    assert.ok(!sent.includes('QEVM'), 'it got the stream')
    if (typeof impostor.server === 'string') assert.equal(sent[0] ?? 0x16, 0x16, 'that was not TLS')
    else assert.equal(sent.length, 0)
    await assertProgress(guest)
  })
}

test('a source whose user the server does not know is told so', { timeout: 60_000 }, async (t) => {
  const { incoming, refused } = listenOverTls(t, keys, 'pattern')
  const guest = await startPattern({ blocks: [{ name: 'a', length: 1 * MiB }] })
  t.after(() => guest.destroy())
  const tls = { directory: otherUser, username: 'nobody' }
  const report = await migrate(guest, { to: incoming.uri, tls }).done
  assert.match(report.error!, /it refused us: .*another user/)
  await until(() => refused.length === 1, 'nothing was reported')
  assert.equal(refused[0]!.reason, 'unknown-user')
})

test('a handshake that begins in time may be slow', { timeout: 60_000 }, async (t) => {
  const { incoming } = listenOverTls(t, good, 'pattern')
  const relay = createPlainServer((near) => {
    const far = connectPlain(Number(/\d+$/.exec(incoming.uri)![0]), '127.0.0.1')
    let first = true
    near.on('data', (chunk) => {
      setTimeout(() => far.write(chunk), first ? 0 : SLOW_MS)
      first = false
    })
    near.on('end', () => setTimeout(() => far.end(), SLOW_MS)).on('error', () => {})
    far.pipe(near).on('error', () => {})
  })
  t.after(() => relay.close())
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve))
  const guest = await startPattern({ blocks: [{ name: 'a', length: 1 * MiB }] })
  t.after(() => guest.destroy())
  const { port } = relay.address() as { port: number }
  const migration = migrate(guest, { to: `tcp:127.0.0.1:${port}`, tls: { directory: good }, postcopy: 'now' })
  const [source, destination] = await Promise.all([migration.done, incoming.done])
  await assertSoundAndEnd(assertMoved({ source, destination }))
})
