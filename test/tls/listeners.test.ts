// What is said before anything is started: a listener that other hosts can reach wants TLS or the user's word, and
// credentials that cannot work are found. And both ends on the command line, as a user has them.

import assert from 'node:assert/strict'
import { copyFileSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { receive, startGuest, UsageError } from '../../src/index.js'
import { loadCredentials } from '../../src/tls/credentials.js'
import { openListener } from '../../src/tls/tunnel.js'
import { farfault, receiver } from '../cli/farfault.js'
import { temporaryDirectory } from '../image/images.js'
import { issue, makeAuthority, writeKeys } from './certificates.js'

const root = temporaryDirectory({ after } as never)
const at = (name: string): string => join(root, name)
const ca = makeAuthority(at('ca'))
const good = issue(ca, at('good'), ['client', 'server'])
const keys = writeKeys(at('keys'), { qemu: '00112233', alice: '44556677' })

const usage = (pattern: RegExp) => (error: unknown) =>
  error instanceof UsageError && pattern.test(error.message)

for (const uri of ['tcp:0.0.0.0:0', 'tcp::0', 'tcp:[::]:0']) {
  test(`${uri} is listened on only with TLS, or when it is said to be meant`, async () => {
    assert.throws(() => openListener({ listen: uri }), usage(/can be reached from other hosts/))
    const open = openListener({ listen: uri, insecure: true })
    open.close()
    const guarded = openListener({ listen: uri, tls: { directory: good } })
    guarded.close()
    await guarded.ended()
  })
}

test('what other hosts cannot reach needs neither', () => {
  for (const uri of [
    'tcp:127.0.0.1:0',
    'tcp:127.1.2.3:0',
    'tcp:localhost:0',
    'tcp:[::1]:0',
    `unix:${at('socket')}`,
  ]) {
    openListener({ listen: uri }).close()
  }
})

test('a cancelled receiver with TLS leaves nothing behind', async () => {
  const ours = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith('farfault-tls-'))
  const before = new Set(ours())
  const guest = () => startGuest({ module: 'pattern' })
  const incoming = receive({ listen: 'tcp:127.0.0.1:0', tls: { directory: good }, guest })
  const [made] = ours().filter((name) => !before.has(name))
  assert.ok(made !== undefined)
  incoming.cancel()
  await incoming.done
  assert.ok(!ours().includes(made))
  const port = Number(/\d+$/.exec(incoming.uri)![0])
  await new Promise<void>((resolve, reject) => {
    connect(port, '127.0.0.1')
      .on('error', () => resolve())
      .on('connect', () => reject(new Error('it still listens')))
  })
})

test('TLS is for tcp', () => {
  const tls = { directory: good }
  assert.throws(() => openListener({ listen: `unix:${at('socket')}`, tls }), usage(/TLS is for tcp/))
  assert.throws(() => openListener({ listen: 'fd:0', tls }), usage(/TLS is for tcp/))
})

test('credentials that cannot work are found before anything is started', () => {
  const empty = at('empty')
  mkdirSync(empty)
  assert.throws(() => loadCredentials(empty, 'server'), usage(/no TLS credentials/))
  copyFileSync(join(good, 'ca-cert.pem'), join(empty, 'ca-cert.pem'))
  assert.throws(() => loadCredentials(empty, 'server'), usage(/has no server-cert\.pem/))
  assert.equal(loadCredentials(empty, 'client').kind, 'x509')
  copyFileSync(join(good, 'client-cert.pem'), join(empty, 'client-cert.pem'))
  assert.throws(() => loadCredentials(empty, 'client'), usage(/has no client-key\.pem/))
  copyFileSync(join(good, 'server-key.pem'), join(empty, 'client-key.pem'))
  assert.throws(() => loadCredentials(empty, 'client'), usage(/cannot be used: .*key values mismatch/))
  writeFileSync(join(empty, 'client-cert.pem'), 'nonsense')
  assert.throws(() => loadCredentials(empty, 'client'), usage(/client-cert\.pem is no certificate/))
  writeKeys(empty, { qemu: '00' })
  assert.throws(() => loadCredentials(empty, 'client'), usage(/has both keys\.psk and ca-cert\.pem/))
  rmSync(join(empty, 'ca-cert.pem'))
  writeFileSync(join(empty, 'keys.psk'), '# a note\n\nqemu:0011\nalice=22\n')
  assert.throws(() => loadCredentials(empty, 'client'), usage(/keys\.psk, line 4: not USER:KEY/))
  const expired = issue(ca, at('expired'), ['client'], { days: -1 })
  assert.throws(() => loadCredentials(expired, 'client'), usage(/client-cert\.pem has expired/))
})

for (const [name, directory, more] of [
  ['certificates', good, ['--tls-hostname', 'localhost']],
  ['pre-shared keys', keys, ['--tls-user', 'alice']],
] as const) {
  test(`farfault receive and migrate with ${name}; who is refused is a line on standard error`, {
    timeout: 60_000,
  }, async () => {
    const { run, uri } = await receiver('--tls-dir', directory, '--run-for', '0')
    connect(Number(/\d+$/.exec(uri)![0]), '127.0.0.1').end('hello')
    await run.says(/farfault: refused: TLS connection from 127\.0\.0\.1:\d+: it speaks no TLS\n/)
    const guest = ['--guest', 'pattern', '--memory', '4M', '--after', '0', '--json']
    const source = farfault('migrate', '--to', uri, '--tls-dir', directory, ...more, ...guest)
    assert.deepEqual(await source.ended, { code: 0, signal: null }, source.err)
    assert.deepEqual(await run.ended, { code: 0, signal: null }, run.err)
    assert.equal(JSON.parse(run.out).ok, true)
  })
}

test('options that do not go together are refused', { timeout: 60_000 }, async () => {
  for (const [args, says] of [
    [['receive', '--listen', 'tcp:0.0.0.0:0'], /--insecure/],
    [['park', at('vm.img'), '--listen', 'tcp:0.0.0.0:0'], /--insecure/],
    [
      ['receive', '--listen', 'tcp:127.0.0.1:0', '--tls-dir', good, '--insecure'],
      /--insecure goes without --tls-dir/,
    ],
    [['migrate', '--to', 'tcp:127.0.0.1:1', '--tls-hostname', 'a'], /need --tls-dir/],
    [['park', at('vm.img'), '--from', 'x', '--tls-dir', good], /--tls-dir needs --listen/],
    [['resume', at('vm.img'), '--tls-dir', good, '--', 'qemu'], /--tls-dir needs --to/],
  ] as const) {
    const run = farfault(...args)
    assert.deepEqual(await run.ended, { code: 2, signal: null }, args.join(' '))
    assert.match(run.err, says)
  }
})
