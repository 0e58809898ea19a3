import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createPacer } from './pacer.js'

test('over ten seconds the limit holds, whatever the size of the pieces', () => {
  for (const piece of [4096, 300_000]) {
    const pacer = createPacer(10_000_000, 0)
    let nowMs = 0
    let sent = 0
    while (nowMs < 10_000) {
      const wait = pacer.waitMs(nowMs)
      if (wait > 0) {
        nowMs += wait
        continue
      }
      pacer.charge(piece)
      sent += piece
    }
    assert.ok(Math.abs(sent - 100_000_000) < 1_100_000, `${sent}`)
  }
})

test('no limit never waits, and a limit set later counts from then', () => {
  const pacer = createPacer(0, 0)
  pacer.charge(1e9)
  assert.equal(pacer.waitMs(5), 0)
  pacer.bytesPerSecond = 1000
  pacer.charge(100)
  assert.equal(pacer.waitMs(5), 100)
  assert.equal(pacer.waitMs(105), 0)
})
