import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { createStaging, STAGING_BYTES } from './staging.js'

const MiB = 2 ** 20

function setUp(t: TestContext) {
  const staging = createStaging()
  t.after(staging.close)
  return staging
}

test('what is kept is not written again: the next sending begins behind it', (t) => {
  const staging = setUp(t)
  assert.equal(staging.start(), 0)
  assert.ok(staging.mayKeep(520, 1 * MiB))
  staging.keep(520, 1 * MiB)
  assert.equal(staging.start(), 520)
})

test('memory is used again only when far more was sent than a socket holds', (t) => {
  const staging = setUp(t)
  let sent = 0
  const starts: number[] = []
  /** Sends so many bytes with all the headers that there is room for; false: they have to be copied. */
  function send(bytes: number): boolean {
    const start = staging.start()
    sent += bytes
    if (!staging.mayKeep(start + STAGING_BYTES, sent)) return false
    staging.keep(start + STAGING_BYTES, sent)
    starts.push(start)
    return true
  }
  for (let i = 0; i < 7; i++) assert.ok(send(1 * MiB), `${i}`)
  assert.equal(send(1 * MiB), false, 'all is full, and 4 MiB were sent since the first half was left')
  assert.ok(send(32 * MiB))
  assert.ok(send(1 * MiB))
  assert.equal(starts.at(-1), 0, 'the first half serves again')
  assert.equal(new Set(starts.slice(0, -1)).size, starts.length - 1)
})

test('a sending always has the room that it may need', (t) => {
  const staging = setUp(t)
  for (let sent = 0, i = 0; i < 10_000; i++) {
    sent += 64 * MiB
    const end = staging.start() + ((i * 997) % STAGING_BYTES)
    assert.ok(staging.mayKeep(end, sent))
    staging.keep(end, sent)
    assert.ok(staging.start() + STAGING_BYTES <= staging.bytes.length, `${i}`)
  }
})
