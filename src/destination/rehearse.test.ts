// The rehearsal goes to its end when it is let, and gets out of the way of whoever comes.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { closeFd, connectTo, listenOn } from '../os/channel.js'
import { createWake } from '../os/wake.js'
import { rehearse } from './rehearse.js'

const descriptors = (): number => readdirSync('/proc/self/fd').length
const anonymousBytes = (): number =>
  Number(/^RssAnon:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024

test('left alone, it goes to its end, and leaves nothing', () => {
  const listener = listenOn('tcp:127.0.0.1:0')
  const wake = createWake()
  assert.ok(rehearse(listener.fd, wake)) // the first one also loads what stays
  const before = { descriptors: descriptors(), bytes: anonymousBytes() }
  assert.ok(rehearse(listener.fd, wake))
  assert.equal(descriptors(), before.descriptors)
  assert.ok(anonymousBytes() - before.bytes < 8 * 2 ** 20, 'its RAM, 16 MiB, is given back')
  wake.close()
  listener.close()
})

test('it is given up when somebody connects, and when the wake descriptor is signalled', () => {
  const listener = listenOn('tcp:127.0.0.1:0')
  const wake = createWake()
  const fd = connectTo(listener.uri, { wakeFd: wake.fd, timeoutMs: 1000 })
  assert.equal(rehearse(listener.fd, wake), false)
  closeFd(fd)
  listener.close()

  const another = listenOn('tcp:127.0.0.1:0')
  wake.signal()
  assert.equal(rehearse(another.fd, wake), false)
  assert.ok(wake.drain(), 'it is still signalled')
  wake.close()
  another.close()
})
