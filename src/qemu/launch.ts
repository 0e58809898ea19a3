// Start a QEMU, talk to it, end it. Runs on the main thread.
//
// The program gets a QMP socket in a private directory that is removed with it. Unless it is meant to survive, it never
// outlives this process: the kernel kills it when the thread that started it ends, however that happens.

import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process'
import { accessSync, constants, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { ChannelError, type FarfaultError, GuestError, HostUnsupportedError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { connectQmp, type Qmp } from './qmp.js'

export interface LaunchOptions {
  /** Program: a path, or a name to be found in PATH. */
  readonly path: string
  /** Everything but the QMP socket. A function is given the private directory, for sockets and files of its own. */
  readonly args: readonly string[] | ((directory: string) => readonly string[])
  /** From the start to the first QMP answer; default 10 s. */
  readonly timeoutMs?: number
  /**
   * Standard input and output: `collect` (default) gives it none and keeps what it prints for `output()`; `inherit` gives
   * it those of this process, and passes its error output on; `ignore` gives it nothing.
   */
  readonly console?: 'collect' | 'inherit' | 'ignore'
  /** It may outlive this process, which otherwise takes it along, however it ends. */
  readonly survives?: boolean
}

export interface QemuExit {
  readonly code: number | null
  readonly signal: string | null
}

export interface Qemu {
  readonly pid: number
  readonly qmp: Qmp
  /** Its QMP socket, which takes the next client when this process is gone. */
  readonly qmpPath: string
  /** Private to this QEMU, removed when it ends. */
  readonly directory: string
  readonly exited: Promise<QemuExit>
  /** Error output so far; at most the last `LIMITS.qemuOutputBytesMax` bytes. */
  errors(): string
  /** Standard output so far: the guest's console, with `-serial stdio`. Bounded as above. */
  output(): string
  /** Wait until the output matches; resolves with the match. Rejects when QEMU exits or the time is over. */
  waitForOutput(pattern: RegExp, options?: { timeoutMs?: number }): Promise<RegExpExecArray>
  /** Ask it to end, and kill it when it has not done so in time (default 5 s). */
  quit(options?: { timeoutMs?: number }): Promise<QemuExit>
  /** SIGKILL: a QEMU that is stalled on a missing page hears nothing else. */
  kill(): Promise<QemuExit>
}

/** How the name of a private directory begins. */
export const DIRECTORY_PREFIX = 'farfault-qemu-'
/** In it. */
export const QMP_SOCKET = 'qmp'

const CONNECT_PERIOD_MS = 10
const OUTPUT_GRACE_MS = 200
/** Lets the kernel kill the child with its parent; part of util-linux. */
const SETPRIV = '/usr/bin/setpriv'

/** Every QEMU that runs, and its directory. */
const running = new Map<ChildProcess, string>()
process.on('exit', () => {
  for (const [child, directory] of running) {
    child.kill('SIGKILL')
    removeDirectory(directory)
  }
})

/**
 * Start QEMU and wait until QMP answers.
 * Rejects with `HostUnsupportedError` (no such program), `GuestError` (it exited: the message has its own words) or
 * `ChannelError` (QMP does not answer in time). Nothing is left behind then.
 */
export async function launchQemu(options: LaunchOptions): Promise<Qemu> {
  const { path, args, timeoutMs = 10_000 } = options
  checkProgram(path)
  const directory = mkdtempSync(join(tmpdir(), DIRECTORY_PREFIX))
  const socketPath = join(directory, QMP_SOCKET)
  try {
    const own = typeof args === 'function' ? args(directory) : args
    const qmp = ['-qmp', `unix:${socketPath},server=on,wait=off`]
    const program = spawnProgram(options, [...own, ...qmp], directory)
    void program.exited.then(() => removeDirectory(directory))
    return await connectProgram(program, socketPath, timeoutMs)
  } catch (error) {
    removeDirectory(directory)
    throw error
  }
}

async function connectProgram(program: Program, socketPath: string, timeoutMs: number): Promise<Qemu> {
  try {
    return createQemu(program, await connectWhenReady(socketPath, program, timeoutMs), socketPath)
  } catch (error) {
    await program.kill()
    throw error
  }
}

type Program = ReturnType<typeof spawnProgram>

const STDIO = {
  collect: ['ignore', 'pipe', 'pipe'],
  inherit: ['inherit', 'inherit', 'pipe'],
  ignore: ['ignore', 'ignore', 'pipe'],
} as const satisfies Record<string, StdioOptions>

function spawnProgram(options: LaunchOptions, args: readonly string[], directory: string) {
  const { path, console = 'collect', survives = false } = options
  const tied = !survives && existsSync(SETPRIV)
  const command = tied ? [SETPRIV, '--pdeathsig', 'KILL', path, ...args] : [path, ...args]
  const child = spawn(command[0]!, command.slice(1), { stdio: [...STDIO[console]] })
  const output = collect(child.stdout)
  const errors = collect(child.stderr)
  if (console === 'inherit') child.stderr?.pipe(process.stderr)
  let hasExited = false
  const exited = new Promise<QemuExit>((resolve) => {
    let grace: NodeJS.Timeout | undefined
    const done = (code: number | null, signal: string | null) => {
      clearTimeout(grace)
      hasExited = true
      running.delete(child)
      resolve({ code, signal })
    }
    // Its error output is complete at `close`; but a child of QEMU's own (`exec:`) may hold that open for long.
    child.on('close', done)
    child.on('exit', (code, signal) => {
      grace = setTimeout(done, OUTPUT_GRACE_MS, code, signal)
    })
    child.on('error', (error) => {
      errors.add(Buffer.from(error.message))
      if (child.pid === undefined) done(null, null)
    })
  })
  if (!survives) running.set(child, directory)
  return {
    name: basename(path),
    pid: child.pid ?? 0,
    output,
    errors,
    exited,
    hasExited: () => hasExited,
    kill() {
      if (!hasExited) child.kill('SIGKILL')
      return exited
    },
  }
}

/** Keep the end of a stream's bytes, and tell whoever waits that there are more. */
function collect(stream: NodeJS.ReadableStream | null) {
  const chunks: Buffer[] = []
  const watchers = new Set<() => void>()
  let length = 0
  const add = (chunk: Buffer) => {
    chunks.push(chunk)
    length += chunk.length
    while (length - chunks[0]!.length >= LIMITS.qemuOutputBytesMax) length -= chunks.shift()!.length
    for (const watcher of watchers) watcher()
  }
  stream?.on('data', add)
  return { add, watchers, text: () => Buffer.concat(chunks).toString('utf8') }
}

/** QEMU creates the socket some time after its start; until then connecting is refused. */
async function connectWhenReady(socketPath: string, program: Program, timeoutMs: number): Promise<Qmp> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const remainingMs = Math.max(1, deadline - performance.now())
    try {
      return await Promise.race([connectQmp(socketPath, { timeoutMs: remainingMs }), rejectOnExit(program)])
    } catch (error) {
      if (program.hasExited() || !(error instanceof ChannelError) || performance.now() > deadline) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, CONNECT_PERIOD_MS))
  }
}

async function rejectOnExit(program: Program): Promise<never> {
  throw exitError(program, await program.exited)
}

function exitError(program: Program, { code, signal }: QemuExit): FarfaultError {
  const how = signal === null ? `exited with code ${code}` : `was ended by ${signal}`
  const said = program.errors.text().trim()
  return new GuestError(`${program.name} ${how}${said === '' ? ' and said nothing' : `: ${said}`}`)
}

function createQemu(program: Program, qmp: Qmp, qmpPath: string): Qemu {
  const { pid, exited, kill } = program
  return {
    pid,
    qmp,
    qmpPath,
    directory: dirname(qmpPath),
    exited,
    kill,
    errors: program.errors.text,
    output: program.output.text,
    waitForOutput: (pattern, options) => waitForOutput(program, pattern, options?.timeoutMs ?? 10_000),
    async quit({ timeoutMs = 5_000 } = {}) {
      const timer = setTimeout(() => void kill(), timeoutMs)
      // It may close the connection before the answer is through, or be dead already.
      await qmp.execute('quit', {}, { timeoutMs }).catch(() => {})
      const exit = await exited
      clearTimeout(timer)
      await qmp.close()
      return exit
    },
  }
}

async function waitForOutput(program: Program, pattern: RegExp, timeoutMs: number): Promise<RegExpExecArray> {
  const { output } = program
  let timer: NodeJS.Timeout | undefined
  let watcher = () => {}
  const matched = new Promise<RegExpExecArray>((resolve, reject) => {
    watcher = () => {
      const match = pattern.exec(output.text())
      if (match !== null) resolve(match)
    }
    timer = setTimeout(() => {
      const last = JSON.stringify(output.text().slice(-200))
      reject(
        new ChannelError(
          `no ${pattern} in the output of ${program.name} within ${timeoutMs} ms; it ends ${last}`,
        ),
      )
    }, timeoutMs)
    output.watchers.add(watcher)
    watcher()
  })
  try {
    return await Promise.race([matched, rejectOnExit(program)])
  } finally {
    clearTimeout(timer)
    output.watchers.delete(watcher)
  }
}

function removeDirectory(directory: string): void {
  rmSync(directory, { recursive: true, force: true })
}

function checkProgram(path: string): void {
  const candidates = path.includes('/')
    ? [path]
    : (process.env.PATH ?? '').split(':').map((directory) => join(directory, path))
  if (candidates.some(isExecutable)) return
  throw new HostUnsupportedError(
    `cannot run "${path}": no such program; install QEMU (Debian: qemu-system-x86)`,
  )
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
