import assert from 'node:assert/strict'
import test from 'node:test'
import { UsageError } from '../errors.js'
import { type ChannelUri, formatUri, parseUri } from './uri.js'

const GOOD: readonly [string, ChannelUri][] = [
  ['tcp:127.0.0.1:4444', { kind: 'tcp', host: '127.0.0.1', port: 4444 }],
  ['tcp:[::1]:0', { kind: 'tcp', host: '::1', port: 0 }],
  ['tcp:[fe80::1%eth0]:9', { kind: 'tcp', host: 'fe80::1%eth0', port: 9 }],
  ['tcp:host.example:65535', { kind: 'tcp', host: 'host.example', port: 65_535 }],
  ['tcp::4444', { kind: 'tcp', host: '', port: 4444 }],
  ['unix:/run/a:b c.sock', { kind: 'unix', path: '/run/a:b c.sock' }],
  ['fd:7', { kind: 'fd', fd: 7 }],
]

const BAD = [
  '',
  'tcp',
  'tcp:host',
  'tcp:host:',
  'tcp:host:65536',
  'tcp:host:-1',
  'tcp:::1:4444',
  'tcp:[::1:4',
  'tcp:a b:1',
  'unix:',
  'unix:a\0b',
  `unix:/${'x'.repeat(107)}`,
  'fd:',
  'fd:x',
  'fd:-1',
  'exec:cat',
  ' tcp:a:1',
]

for (const [text, uri] of GOOD) {
  test(`parseUri ${text}`, () => {
    assert.deepEqual(parseUri(text), uri)
    assert.equal(formatUri(uri), text)
  })
}

for (const text of BAD) {
  test(`parseUri refuses ${JSON.stringify(text).slice(0, 30)}`, () =>
    assert.throws(() => parseUri(text), UsageError))
}
