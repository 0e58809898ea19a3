import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createPushWindow, type PushWindow } from './window.js'

/** A link of `bytesPerUs` and a fixed delay; returns the longest a byte queued once the window has settled. */
function simulate(bytesPerUs: number, delayUs: number): { queueUsMax: number; utilisation: number } {
  const window = createPushWindow()
  const flying: { value: number; at: number }[] = []
  let nowUs = 0
  let linkFreeUs = 0
  let busyUs = 0
  let queueUsMax = 0
  for (let value = 0; value < 4000; value++) {
    while (window.room(true) === 0) {
      const first = flying.shift()!
      nowUs = Math.max(nowUs, first.at)
      window.acknowledged(first.value, nowUs)
    }
    const bytes = window.room(true)
    const start = Math.max(nowUs, linkFreeUs)
    linkFreeUs = start + bytes / bytesPerUs
    busyUs += bytes / bytesPerUs
    if (value > 2000) queueUsMax = Math.max(queueUsMax, linkFreeUs - nowUs)
    window.sent(value, bytes, nowUs)
    flying.push({ value, at: linkFreeUs + delayUs })
  }
  return { queueUsMax, utilisation: busyUs / linkFreeUs }
}

test('a fast link is filled and its queue stays short', () => {
  const { queueUsMax, utilisation } = simulate(1500, 50)
  assert.ok(utilisation > 0.9, `utilisation ${utilisation}`)
  assert.ok(queueUsMax < 500, `queue ${queueUsMax}`)
})

test('a link with 20 ms of delay is filled too: several chunks in flight', () => {
  const { utilisation } = simulate(125, 20_000)
  assert.ok(utilisation > 0.8, `utilisation ${utilisation}`)
})

test('a slow link keeps no more than two of the smallest chunks queued', () => {
  const { queueUsMax } = simulate(12, 200)
  assert.ok(queueUsMax <= (2.1 * 32_768) / 12, `queue ${queueUsMax}`)
})

/** Fills the window; the values of the chunks. */
function fill(window: PushWindow): number[] {
  const values: number[] = []
  for (let value = 10; window.room(true) > 0; value++) {
    window.sent(value, window.room(true), 0)
    values.push(value)
  }
  return values
}

test('a PONG answers for all that went before it: one that is lost keeps nothing', () => {
  const window = createPushWindow()
  const values = fill(window)
  assert(values.length > 2)
  window.acknowledged(values.at(-2)!, 100)
  assert(window.room(true) > 0)
  const more = fill(window)
  assert(more.length >= values.length - 1, 'some of what was answered still counts')
})

test('a PONG that answers nothing, or came before, changes nothing', () => {
  const window = createPushWindow()
  const values = fill(window)
  for (const value of [0, 9, values.at(-1)! + 1, 2 ** 32 - 1]) window.acknowledged(value, 100)
  assert.equal(window.room(true), 0)
  window.acknowledged(values[0]!, 100)
  const windowBytes = window.windowBytes()
  window.acknowledged(values[0]!, 200)
  assert.equal(window.windowBytes(), windowBytes)
})

test('PONGs that are late for a while do not leave the link idle', () => {
  const window = createPushWindow()
  let nowUs = 0
  for (let value = 0; value < 100; value++) {
    const late = value % 3 === 0
    for (const sent of [value * 2, value * 2 + 1]) window.sent(sent, window.room(true), nowUs)
    nowUs += late ? 10_000 : 400
    window.acknowledged(value * 2 + 1, nowUs)
  }
  assert.ok(window.windowBytes() > 256 * 1024, `${window.windowBytes()}`)
})

test('while nobody asks the queue may be longer', () => {
  const window = createPushWindow()
  let nowUs = 0
  for (let value = 0; value < 100; value++) {
    window.sent(value, window.room(true), nowUs)
    nowUs += 500
    window.acknowledged(value, nowUs)
  }
  const asked = fill(window).length
  window.acknowledged(2 ** 20, nowUs)
  assert.ok(window.room(true) === 0 && window.room(false) > 0)
  assert.ok(asked > 0)
})
