// Runs the farfault command as a user would: a process of its own, its output, and its end.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url))

export interface Run {
  readonly child: ChildProcess
  readonly pid: number
  readonly out: string
  readonly err: string
  /** Resolves with the first match of `pattern` in what it says; rejects when it ends without. */
  says(pattern: RegExp): Promise<RegExpExecArray>
  readonly ended: Promise<{ code: number | null; signal: string | null }>
}

const children = new Set<ChildProcess>()
/** What a command that is killed could not remove. */
const temporary = mkdtempSync(join(tmpdir(), 'farfault-cli-'))

// A test that fails leaves its processes running.
after(() => {
  for (const child of children) child.kill('SIGKILL')
  rmSync(temporary, { recursive: true, force: true })
})

export function farfault(...args: string[]): Run {
  const env = { ...process.env, TMPDIR: temporary }
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env })
  children.add(child)
  child.on('exit', () => children.delete(child))
  let out = ''
  let err = ''
  child.stdout!.on('data', (bytes) => {
    out += bytes
  })
  child.stderr!.on('data', (bytes) => {
    err += bytes
  })
  const ended = once(child, 'close').then(([code, signal]) => ({ code, signal }))
  return {
    child,
    pid: child.pid!,
    get out() {
      return out
    },
    get err() {
      return err
    },
    async says(pattern) {
      for (;;) {
        const match = pattern.exec(out + err)
        if (match !== null) return match
        if (child.exitCode !== null || child.signalCode !== null) {
          throw new Error(`it ended without saying ${pattern}: ${out}${err}`)
        }
        await sleep(10)
      }
    },
    ended,
  }
}

/** Whether there is such a process; one that has ended but was not waited for is none. */
export function exists(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

/** Resolves when none of them exists; rejects after `withinMs`. */
export async function allGone(pids: readonly number[], withinMs: number): Promise<void> {
  const endMs = performance.now() + withinMs
  while (pids.some(exists)) {
    if (performance.now() > endMs) throw new Error(`still there: ${pids.filter(exists).join(', ')}`)
    await sleep(20)
  }
}

/** A guest whose RAM takes about two seconds to move, whichever way: small, and slow. */
export const SLOW_TRANSFER = [
  '--guest=pattern',
  '--memory=16M',
  '--rate=3000',
  '--touch=3000',
  '--writes=1',
  '--after=300ms',
  '--max-bandwidth=2M',
  '--max-postcopy-bandwidth=2M',
] as const

/** A receiver that listens, and where. */
export async function receiver(...args: string[]): Promise<{ run: Run; uri: string }> {
  const run = farfault('receive', '--listen', 'tcp:127.0.0.1:0', '--json', ...args)
  const [, uri] = await run.says(/listening on (\S+)/)
  return { run, uri: uri! }
}
