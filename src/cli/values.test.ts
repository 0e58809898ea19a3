import assert from 'node:assert/strict'
import { test } from 'node:test'
import { UsageError } from '../errors.js'
import {
  count,
  duration,
  durationOrForever,
  oneOf,
  type Read,
  range,
  share,
  size,
  stallBudget,
} from './values.js'

const MiB = 1024 * 1024

const GOOD: [Read<unknown>, string, unknown][] = [
  [size, '0', 0],
  [size, '4096', 4096],
  [size, '128M', 128 * MiB],
  [size, '1.5g', 1536 * MiB],
  [size, '64KiB', 65_536],
  [size, '64 '.trim(), 64],
  [duration, '0', 0],
  [duration, '25ms', 25],
  [duration, '2s', 2000],
  [duration, '1.5m', 90_000],
  [durationOrForever, 'forever', Number.POSITIVE_INFINITY],
  [count(1), '7', 7],
  [share, '0.5', 0.5],
  [stallBudget, '50ms/s', 50],
  [stallBudget, '5%', 50],
  [share, '50%', 0.5],
  [range, '1M-100M', { start: MiB, end: 100 * MiB }],
  [oneOf(['now', 'never']), 'now', 'now'],
]

const BAD: [Read<unknown>, string][] = [
  [size, ''],
  [size, 'M'],
  [size, '-1'],
  [size, '1X'],
  [size, '0.3'],
  [size, '99999999T'],
  [duration, '2'],
  [duration, '2 s'],
  [count(1), '0'],
  [count(), '1.5'],
  [share, '2'],
  [share, '150%'],
  [stallBudget, '50ms'],
  [stallBudget, '5'],
  [range, '1M'],
  [range, '1M-2M-3M'],
  [oneOf(['now', 'never']), 'soon'],
]

test('values are read', () => {
  for (const [read, text, value] of GOOD) assert.deepEqual(read(text), value, text)
})

test('what is no value is refused with what would be one', () => {
  for (const [read, text] of BAD) {
    assert.throws(
      () => read(text),
      (error) => error instanceof UsageError && /^wants .*not ".*"$/.test(error.message),
      text,
    )
  }
})
