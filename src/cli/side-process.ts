// One side of a demo as a process of its own: the same command a user would type, with a channel to its coordinator.
// Main thread of the coordinator.

import { fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { COORDINATED, type SideMessage, type SideOrder } from './control.js'
import { EXIT } from './exit-codes.js'
import type { SideReport } from './reports.js'

/** Of what a side writes to standard error, so much is kept to explain its end. */
const ERRORS_KEPT = 4000

export interface SideProcess {
  readonly name: string
  readonly pid: number
  /** Undefined until it has sent it; a side that dies sends none. */
  readonly report: SideReport | undefined
  readonly alive: boolean
  /** Why it refused its options, if it did. */
  readonly usageError: string | undefined
  order(order: SideOrder): void
  /** At once, by its process id. */
  kill(): void
  /** Resolves when the process is gone, with what went wrong, or undefined when nothing did. */
  readonly ended: Promise<string | undefined>
}

export function startSide(
  name: string,
  args: readonly string[],
  onMessage: (message: SideMessage) => void,
): SideProcess {
  const child = fork(fileURLToPath(new URL('./main.js', import.meta.url)), args, {
    env: { ...process.env, [COORDINATED]: '1' },
    execArgv: [],
    serialization: 'advanced', // page maps are typed arrays
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  let report: SideReport | undefined
  let errors = ''
  let alive = true
  let usageError: string | undefined
  child.stderr!.on('data', (bytes: Buffer) => {
    errors = (errors + bytes.toString()).slice(-ERRORS_KEPT)
  })
  child.on('message', (message: SideMessage) => {
    if (message.type === 'report') report = message.report
    onMessage(message)
  })
  const ended = new Promise<string | undefined>((resolve) => {
    child.on('error', (error) => {
      alive = false
      resolve(`the ${name} could not be started: ${error.message}`)
    })
    // `close` comes after all that it wrote has been read.
    child.on('close', (code, signal) => {
      alive = false
      if (code === EXIT.usage) usageError = lastLine(errors)
      resolve(explain(name, report, code, signal, errors))
    })
  })
  const kill = (): void => {
    if (alive) child.kill('SIGKILL')
  }
  process.on('exit', kill)
  return {
    name,
    pid: child.pid ?? -1,
    get report() {
      return report
    },
    get alive() {
      return alive
    },
    get usageError() {
      return usageError
    },
    order(order) {
      if (child.connected) child.send(order, () => {}) // it may be gone before it reads this
    },
    kill,
    ended,
  }
}

/** A side that has reported has said itself what was wrong. */
function explain(
  name: string,
  report: SideReport | undefined,
  code: number | null,
  signal: string | null,
  errors: string,
): string | undefined {
  if (signal !== null) return `the ${name} was killed by ${signal}`
  if (report !== undefined) return undefined
  const last = lastLine(errors)
  return `the ${name} ended with status ${code} before it was done${last === '' ? '' : `: ${last}`}`
}

const lastLine = (text: string): string => (text.trim().split('\n').at(-1) ?? '').replace(/^farfault: /, '')
