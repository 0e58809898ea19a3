// Progress on a terminal, redrawn in place, or as plain lines in a log. Main thread.

import { mapSize, renderLine, renderScreen, statusOf } from './screen.js'
import type { View } from './view.js'

const LINE_INTERVAL_MS = 500
/** Speed is measured over about so long. */
const RATE_WINDOW_MS = 400

export interface Display {
  /** Cells of a page map that fills it. */
  readonly mapCells: number
  show(view: Omit<View, 'bytesPerSecond'>): void
  /** A line that stays, above what is redrawn. */
  say(line: string): void
  /** Somebody pressed enter, and the terminal went to the next line. */
  entered(): void
  /** Leaves the last picture and gives the cursor back. */
  end(): void
}

export type Terminal = Pick<NodeJS.WriteStream, 'write'> &
  Partial<Pick<NodeJS.WriteStream, 'isTTY' | 'columns' | 'rows'>>

/** @param options.quiet without a terminal show no progress, only what is said */
export function createDisplay(stream: Terminal, options: { quiet?: boolean } = {}): Display {
  if (stream.isTTY && process.env.TERM !== 'dumb') return liveDisplay(stream)
  return plainDisplay(stream, options.quiet === true)
}

function liveDisplay(stream: Terminal): Display {
  // https://no-color.org: present and not empty.
  const colour = (process.env.NO_COLOR ?? '') === ''
  const rate = rateMeter()
  const size = () => ({ columns: stream.columns ?? 80, rows: stream.rows ?? 24 })
  let drawn = 0
  let hidden = false
  const showCursor = () => {
    if (hidden) stream.write('\x1b[?25h')
    hidden = false
  }
  const erase = () => {
    if (drawn > 0) stream.write(`\x1b[${drawn}A\r\x1b[J`)
    drawn = 0
  }
  process.on('exit', showCursor)
  return {
    get mapCells() {
      const { columns, rows } = mapSize(size())
      return columns * rows
    },
    show(view) {
      const lines = renderScreen({ ...view, bytesPerSecond: rate(view) }, size(), colour)
      // Written over what was there, and only then the rest erased: erasing first would flicker.
      const up = drawn > 0 ? `\x1b[${drawn}A\r` : ''
      const start = hidden ? '' : '\x1b[?25l'
      stream.write(`${start}${up}${lines.map((line) => `${line}\x1b[K\n`).join('')}\x1b[J`)
      hidden = true
      drawn = lines.length
    },
    say(line) {
      erase()
      stream.write(`${line}\n`)
    },
    entered() {
      if (drawn > 0) drawn++
    },
    end() {
      drawn = 0
      showCursor()
    },
  }
}

function plainDisplay(stream: Terminal, quiet: boolean): Display {
  const rate = rateMeter()
  let lastStatus = ''
  let lastMs = Number.NEGATIVE_INFINITY
  return {
    mapCells: 1024,
    show(view) {
      const bytesPerSecond = rate(view)
      const status = statusOf(view)
      const nowMs = performance.now()
      if (quiet || (status === lastStatus && nowMs - lastMs < LINE_INTERVAL_MS)) return
      lastStatus = status
      lastMs = nowMs
      stream.write(`${renderLine({ ...view, bytesPerSecond }, new Date())}\n`)
    },
    say: (line) => void stream.write(`${line}\n`),
    entered() {},
    end() {},
  }
}

/** Bytes a second of the side that sends, or else of the one that receives. */
function rateMeter(): (view: Omit<View, 'bytesPerSecond'>) => number {
  let samples: { ms: number; bytes: number }[] = []
  return ({ source, destination }) => {
    const sample = { ms: performance.now(), bytes: source?.bytes ?? destination?.bytes ?? 0 }
    samples = [...samples.filter(({ ms }) => sample.ms - ms < RATE_WINDOW_MS), sample]
    const { ms, bytes } = samples[0]!
    return sample.ms - ms < 50 ? 0 : Math.max(0, ((sample.bytes - bytes) / (sample.ms - ms)) * 1000)
  }
}
