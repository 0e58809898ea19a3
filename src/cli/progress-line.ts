// Progress in one line: redrawn in place on a terminal, twice a second in a log. Main thread.

const TERMINAL_INTERVAL_MS = 66
const LOG_INTERVAL_MS = 500

export interface ProgressLine {
  /** `render` is called only when it is time for another line. */
  show(render: () => string): void
  /** A line that stays. */
  say(line: string): void
  /** Leaves nothing behind on a terminal. */
  end(): void
}

/** @param json standard output is the report's alone, and there is no progress but on a terminal. */
export function createProgressLine(json: boolean): ProgressLine {
  const stream = json ? process.stderr : process.stdout
  const live = stream.isTTY === true && process.env.TERM !== 'dumb'
  const intervalMs = live ? TERMINAL_INTERVAL_MS : LOG_INTERVAL_MS
  const erase = live ? '\r\x1b[K' : ''
  let lastMs = Number.NEGATIVE_INFINITY
  return {
    show(render) {
      const nowMs = performance.now()
      if (nowMs - lastMs < intervalMs || (json && !live)) return
      lastMs = nowMs
      stream.write(live ? `${erase}${render()}` : `${render()}\n`)
    },
    say: (line) => void stream.write(`${erase}${line}\n`),
    end: () => void stream.write(erase),
  }
}

/** Units a second over the last second or so; 0 before that can be said. */
export type Rate = (value: number) => number

const RATE_WINDOW_MS = 1000

export function createRate(): Rate {
  let samples: { ms: number; value: number }[] = []
  return (value) => {
    const sample = { ms: performance.now(), value }
    samples = [...samples.filter(({ ms }) => sample.ms - ms < RATE_WINDOW_MS), sample]
    const first = samples[0]!
    const ms = sample.ms - first.ms
    return ms < 50 ? 0 : ((value - first.value) / ms) * 1000
  }
}
