import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { checkContinuity, followPrinted, type GuestTrack } from './serial.js'

const ALPHABET = 'abcdefghijklmnopqrstuvwxyz'
const letters = (from: number, to: number): string =>
  Array.from({ length: to - from }, (_, i) => ALPHABET[(from + i) % 26]).join('')

function track(text: string, progress: number, machine = 'farfault-v86'): GuestTrack {
  const printed = followPrinted()
  printed.add(Buffer.from(text))
  return { machine, progress, printed: printed.summary() }
}

test('letters in order are one sequence, wherever the switch fell', () => {
  fc.assert(
    fc.property(fc.nat(200), fc.nat(200), (before, after) => {
      const source = track(letters(0, before), before)
      const destination = track(letters(before, before + after), before + after)
      assert.equal(checkContinuity(source, destination).ok, true)
    }),
  )
})

test('a lost, a repeated or a foreign letter is found', () => {
  const source = track(letters(0, 30), 30)
  for (const [text, progress] of [
    [letters(31, 40), 40],
    [letters(29, 40), 40],
    [`${letters(30, 35)}${letters(36, 41)}`, 41],
    [`${letters(30, 35)}?`, 36],
    [letters(30, 40), 66], // 26 passes more than letters: the next letter fits, the count does not
  ] as const) {
    assert.equal(checkContinuity(source, track(text, progress)).ok, false, text)
  }
  assert.equal(checkContinuity(track(letters(1, 30), 30), track(letters(30, 40), 40)).ok, false)
})

test('output may come in any pieces, and only its ends are kept', () => {
  const text = letters(0, 500)
  const whole = followPrinted()
  whole.add(Buffer.from(text))
  const pieces = followPrinted()
  for (const letter of text) pieces.add(Buffer.from(letter))
  assert.deepEqual(pieces.summary(), whole.summary())
  assert.equal(whole.breaks, 0)
  assert.equal(whole.head, text.slice(0, 24))
  assert.equal(whole.tail, text.slice(-24))
})

test('other guests must not fall back', () => {
  assert.equal(checkContinuity(track('', 10, 'farfault-pattern'), track('', 12)).ok, true)
  assert.equal(checkContinuity(track('', 10, 'farfault-pattern'), track('', 9)).ok, false)
})
