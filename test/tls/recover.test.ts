// The connection of a migration over TLS breaks after the switch: it is made again, with all that TLS asks for, and who
// cannot prove who he is does not get in then either.

import assert from 'node:assert/strict'
import { connect, createServer, type Socket } from 'node:net'
import { after, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { migrate, receive, startGuest, TlsError, UsageError } from '../../src/index.js'
import { assertMoved, assertSoundAndEnd, MiB, startPattern } from '../engine/guests.js'
import { postcopySkipReason } from '../engine/host.js'
import { temporaryDirectory } from '../image/images.js'
import { issue, makeAuthority, writeKeys } from './certificates.js'
import { freePort } from './listening.js'

const options = { skip: postcopySkipReason(), timeout: 120_000 }
const root = temporaryDirectory({ after } as never)
const good = issue(makeAuthority(`${root}/ca`), `${root}/good`, ['client', 'server'])
const stranger = issue(makeAuthority(`${root}/other-ca`), `${root}/stranger`, ['client', 'server'])
const keys = writeKeys(`${root}/keys`, { qemu: '00112233445566778899aabbccddeeff' })

/** TCP through here can be cut, and nobody gets through until it is mended. */
async function startRelay(t: TestContext, to: () => number) {
  const open = new Set<Socket>()
  const server = createServer((near) => {
    const far = connect(to(), '127.0.0.1')
    for (const socket of [near, far]) {
      open.add(socket.on('error', () => {}).on('close', () => open.delete(socket)))
    }
    near.pipe(far).pipe(near)
  })
  t.after(() => {
    server.close()
    for (const socket of open) socket.destroy()
  })
  const listen = (at: number) => new Promise<void>((resolve) => server.listen(at, '127.0.0.1', resolve))
  await listen(0)
  const { port } = server.address() as { port: number }
  return {
    uri: `tcp:127.0.0.1:${port}`,
    cut() {
      server.close()
      for (const socket of open) socket.resetAndDestroy()
    },
    mend: () => listen(port),
  }
}

const portOf = (uri: string): number => Number(/\d+$/.exec(uri)![0])

for (const [kind, directory] of [
  ['certificates', good],
  ['pre-shared keys', keys],
] as const) {
  for (const samePort of [true, false]) {
    const where = samePort ? 'the same port' : 'another port'
    test(`recovered twice, with ${kind}, on ${where}; a stranger is refused there`, options, async (t) => {
      const refused: TlsError[] = []
      const first = await freePort()
      const again = samePort ? first : await freePort()
      const guest = await startPattern({ blocks: [{ name: 'a', length: 8 * MiB }] })
      t.after(() => guest.destroy())
      const incoming = receive({
        listen: `tcp:127.0.0.1:${first}`,
        recover: `tcp:127.0.0.1:${again}`,
        tls: { directory, onRefused: (error) => refused.push(error) },
        guest: (machine, blocks) => startGuest({ module: 'pattern', incoming: { machine, blocks } }),
      })
      let lost = 0
      const relay = await startRelay(t, () => (lost === 0 ? portOf(incoming.uri) : again))
      const migration = migrate(guest, {
        ...{ to: relay.uri, recover: relay.uri, tls: { directory }, postcopy: 'now' },
        maxPostcopyBandwidth: 2 * MiB,
      })
      const until = async (holds: () => boolean) => {
        while (!holds()) await sleep(5, undefined, { signal: t.signal })
      }
      while (lost < 2) {
        await until(() => [incoming, migration].every(({ status }) => status === 'postcopy-active'))
        await sleep(300)
        lost++
        relay.cut()
        await until(() => incoming.status === 'postcopy-paused')
        while (refused.length < lost) {
          connect(again, '127.0.0.1')
            .on('error', () => {})
            .end('hello')
          await sleep(50, undefined, { signal: t.signal })
        }
        await relay.mend()
      }
      const [source, destination] = await Promise.all([migration.done, incoming.done])
      await assertSoundAndEnd(assertMoved({ source, destination }))
    })
  }
}

test('a destination that is another one when it is to be recovered gets nothing', options, async (t) => {
  const [first, again] = [await freePort(), await freePort()]
  const guest = await startPattern({ blocks: [{ name: 'a', length: 8 * MiB }] })
  t.after(() => guest.destroy())
  const arrive = (listen: number, recover: number, directory: string) =>
    receive({
      listen: `tcp:127.0.0.1:${listen}`,
      recover: `tcp:127.0.0.1:${recover}`,
      tls: { directory },
      guest: (machine, blocks) => startGuest({ module: 'pattern', incoming: { machine, blocks } }),
    })
  const incoming = arrive(first, await freePort(), good)
  const impostor = arrive(again, await freePort(), stranger)
  const relay = await startRelay(t, () => first)
  const migration = migrate(guest, {
    ...{ to: relay.uri, recover: `tcp:127.0.0.1:${again}`, recoverTimeMs: 2000, tls: { directory: good } },
    ...{ postcopy: 'now', maxPostcopyBandwidth: 1 * MiB },
  })
  while (migration.status !== 'postcopy-active') await sleep(10)
  relay.cut()
  const source = await migration.done
  assert.equal(source.ok, false)
  assert(source.cause instanceof TlsError, String(source.cause))
  assert.equal(source.cause.reason, 'untrusted')
  assert.equal(impostor.stats.bytes, 0)
  for (const each of [incoming, impostor]) {
    each.cancel()
    await each.done
  }
})

test('where it is recovered must be reached over TCP', () => {
  assert.throws(
    () =>
      receive({
        listen: 'tcp:127.0.0.1:0',
        recover: 'unix:/tmp/nowhere',
        tls: { directory: good },
        guest: () => assert.fail(),
      }),
    UsageError,
  )
})
