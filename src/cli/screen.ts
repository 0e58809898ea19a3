// The progress display as a function: a view and the size of the terminal give lines of text. Pure.

import { PAGE_STATE } from '../index.js'
import { bytes, counted, seconds } from './text.js'
import type { DestinationView, SourceView, View } from './view.js'

export interface ScreenSize {
  readonly columns: number
  readonly rows: number
}

type PageState = keyof typeof PAGE_STATE

/** Glyphs differ too, for terminals without colour; colours are of the 256-colour palette. */
const CELLS: Readonly<Record<PageState, { readonly glyph: string; readonly colour: number }>> = {
  missing: { glyph: '·', colour: 242 },
  partly: { glyph: '░', colour: 67 },
  received: { glyph: '▒', colour: 33 },
  waiting: { glyph: '█', colour: 226 },
  faulted: { glyph: '▓', colour: 208 },
}
const STATES = Object.keys(PAGE_STATE) as PageState[]

const MAP_COLUMNS_MAX = 96
const MAP_ROWS_MAX = 16
const MAP_ROWS_MIN = 4
/** Lines above and below the map, and one for the cursor. */
const OTHER_ROWS = 9

export function mapSize({ columns, rows }: ScreenSize): { columns: number; rows: number } {
  return {
    columns: Math.max(8, Math.min(MAP_COLUMNS_MAX, columns - 2)),
    rows: Math.max(MAP_ROWS_MIN, Math.min(MAP_ROWS_MAX, rows - OTHER_ROWS)),
  }
}

/** Lines of at most `columns` characters, escape sequences not counted. */
export function renderScreen(view: View, size: ScreenSize, colour: boolean): string[] {
  const { source, destination } = view
  const facts = [
    ...(source === undefined ? [] : [sourceLine(source)]),
    ...(destination === undefined ? [] : [destinationLine(destination)]),
    ...(source === undefined && destination === undefined ? [] : [guestLine(view)]),
  ]
  const heading = [view.title, ...facts].map((line) => line.slice(0, size.columns - 1))
  if (destination === undefined || destination.map.length === 0) return heading
  const map = renderMap(destination.map, mapSize(size).columns, colour)
  return [...heading, '', ...map, '', legend(colour, size.columns - 1)]
}

function sourceLine({ status, passes, bytes: sent, bytesRemaining, requests }: SourceView): string {
  const pass = passes === 0 ? '' : `   pass ${passes}`
  const left = status === 'active' || status === 'postcopy-active' ? `   ${bytes(bytesRemaining)} left` : ''
  return `source       ${status.padEnd(17)}${bytes(sent)} sent${left}${pass}   ${counted(requests, 'request')}`
}

function destinationLine({ status, map, requests, bytes: came }: DestinationView): string {
  return (
    `destination  ${status.padEnd(17)}${bytes(came)} came   ${receivedPercent(map)} % received   ` +
    `${counted(requests, 'page')} asked for`
  )
}

function guestLine({ source, destination, bytesPerSecond }: View): string {
  const before = oneLine(source?.printed.tail ?? '')
  const after = oneLine(destination?.printed.tail ?? '')
  const text = destination === undefined ? before : source === undefined ? after : `${before}|${after}`
  const rate = bytesPerSecond > 0 ? `   ${bytes(bytesPerSecond)}/s` : ''
  return `guest        ${(text === '|' ? '' : text).padEnd(16)}${rate}`
}

/** Control characters would move the cursor. */
const oneLine = (text: string): string => text.replace(/[^ -~]+/g, ' ').trim()

/** By the map alone, so as exact as its cells are small. */
export function receivedPercent(map: Uint8Array): number {
  if (map.length === 0) return 0
  let halves = 0
  for (const state of map) {
    if (state === PAGE_STATE.received || state === PAGE_STATE.faulted) halves += 2
    else if (state !== PAGE_STATE.missing) halves += 1
  }
  return Math.floor((halves * 50) / map.length)
}

function renderMap(map: Uint8Array, columns: number, colour: boolean): string[] {
  const lines: string[] = []
  for (let start = 0; start < map.length; start += columns) {
    lines.push(` ${renderRow(map.subarray(start, start + columns), colour)}`)
  }
  return lines
}

/** One escape sequence for each run of equal cells. */
function renderRow(cells: Uint8Array, colour: boolean): string {
  let row = ''
  for (let from = 0; from < cells.length; ) {
    let to = from + 1
    while (to < cells.length && cells[to] === cells[from]) to++
    row += paint(STATES[cells[from]!] ?? 'missing', to - from, colour)
    from = to
  }
  return row
}

function paint(state: PageState, width: number, colour: boolean): string {
  const { glyph, colour: code } = CELLS[state]
  // Colour tells the states apart better than shades of grey do, so what has arrived is a full block.
  const shown = colour && (state === 'received' || state === 'faulted') ? '█' : glyph
  return colour ? `\x1b[38;5;${code}m${shown.repeat(width)}\x1b[0m` : shown.repeat(width)
}

function legend(colour: boolean, columns: number): string {
  const width = STATES.reduce((sum, state) => sum + state.length + 4, 0)
  return width > columns ? '' : ` ${STATES.map((state) => `${paint(state, 1, colour)} ${state}`).join('  ')}`
}

/** One line for a log: the time, the status of the side that knows most, and how far it is. */
export function renderLine(view: View, now: Date): string {
  const { source, destination, bytesPerSecond } = view
  const parts: string[] = []
  if (destination !== undefined && destination.map.length > 0) {
    parts.push(`${receivedPercent(destination.map)} % received`)
    parts.push(`${counted(destination.requests, 'page')} asked for`)
  } else if (source !== undefined) {
    if (source.passes > 0) parts.push(`pass ${source.passes}`)
    if (source.bytes > 0) parts.push(`${bytes(source.bytes)} sent`)
    if (source.bytesRemaining > 0) parts.push(`${bytes(source.bytesRemaining)} left`)
    if (source.requests > 0) parts.push(counted(source.requests, 'request'))
  }
  if (bytesPerSecond > 0) parts.push(`${bytes(bytesPerSecond)}/s`)
  return `${seconds(now)} ${statusOf(view)} ${parts.join(', ')}`.trimEnd()
}

/** A change of it shows that a line is due at once. */
export function statusOf({ source, destination }: Omit<View, 'bytesPerSecond'>): string {
  const status = source?.status ?? destination?.status ?? 'none'
  return status === 'none' ? 'starting' : status
}
