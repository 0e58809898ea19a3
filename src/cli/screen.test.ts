import assert from 'node:assert/strict'
import { test } from 'node:test'
import { PAGE_STATE } from '../index.js'
import { mapSize, receivedPercent, renderLine, renderScreen } from './screen.js'
import type { View } from './view.js'

const MiB = 1024 * 1024
const { missing, partly, received, waiting, faulted } = PAGE_STATE
const printed = { characters: 5, head: 'vwxyz', tail: 'vwxyz', breaks: 0 }
const SIZE = { columns: 100, rows: 30 }

function viewWith(map: readonly number[]): View {
  const common = { bytes: 45 * MiB, memoryBytes: 128 * MiB, progress: 52, requests: 310 }
  return {
    title: 'a title',
    bytesPerSecond: 120 * MiB,
    source: { ...common, status: 'postcopy-active', passes: 2, bytesRemaining: 83 * MiB, printed },
    destination: {
      ...common,
      status: 'postcopy-active',
      map: Uint8Array.from(map),
      printed: { ...printed, tail: 'ab\n' },
    },
  }
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what is looked for
const withoutColour = (line: string): string => line.replace(/\x1b\[[\d;]*m/g, '')

test('the screen without colour', () => {
  const lines = renderScreen(viewWith([missing, partly, received, waiting, faulted, faulted]), SIZE, false)
  assert.deepEqual(lines, [
    'a title',
    'source       postcopy-active  45 MiB sent   83 MiB left   pass 2   310 requests',
    'destination  postcopy-active  45 MiB came   66 % received   310 pages asked for',
    'guest        vwxyz|ab           120 MiB/s',
    '',
    ' ·░▒█▓▓',
    '',
    ' · missing  ░ partly  ▒ received  █ waiting  ▓ faulted',
  ])
})

test('colour changes nothing but colour and blocks, one sequence a run', () => {
  const lines = renderScreen(viewWith([missing, missing, received, received, faulted]), SIZE, true)
  assert.equal(lines[5], ' \x1b[38;5;242m··\x1b[0m\x1b[38;5;33m██\x1b[0m\x1b[38;5;208m█\x1b[0m')
})

test('every line fits, in terminals of any size', () => {
  for (const columns of [10, 20, 40, 80, 300]) {
    for (const rows of [5, 24, 100]) {
      const map = mapSize({ columns, rows })
      const cells = new Array<number>(map.columns * map.rows).fill(received)
      const lines = renderScreen(viewWith(cells), { columns, rows }, true)
      for (const line of lines) assert.ok(withoutColour(line).length < columns, `${columns}: ${line}`)
      if (rows >= 24) assert.ok(lines.length < rows, `${lines.length} lines of ${rows}`)
    }
  }
})

test('a line for a log', () => {
  const now = new Date(2026, 0, 1, 12, 0, 1)
  const half = viewWith([received, missing])
  assert.equal(
    renderLine(half, now),
    '12:00:01 postcopy-active 50 % received, 310 pages asked for, 120 MiB/s',
  )
  const { destination: _, ...sourceOnly } = half
  assert.equal(
    renderLine({ ...sourceOnly, bytesPerSecond: 0 }, now),
    '12:00:01 postcopy-active pass 2, 45 MiB sent, 83 MiB left, 310 requests',
  )
  assert.equal(renderLine({ title: '', bytesPerSecond: 0 }, now), '12:00:01 starting')
})

test('per cent received counts half for parts', () => {
  assert.equal(receivedPercent(new Uint8Array(0)), 0)
  assert.equal(receivedPercent(Uint8Array.of(received, faulted, partly, waiting)), 75)
  assert.equal(receivedPercent(Uint8Array.of(received, received)), 100)
})
