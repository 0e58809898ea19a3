// Programs that the benchmarks run: the C reference, compiled here into a directory of its own, and children of Node.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { freemem, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

/** This file runs as dist/bench/programs.js; the C sources stay where they are. */
const C_SOURCES = fileURLToPath(new URL('../../bench/c/', import.meta.url))
/** What no run comes near. A stalled one must not hold up the others for ever. */
export const RUN_MS_MAX = 300_000

const compiled = new Map<string, string>()
let directory: string | undefined

/** Path of the compiled program; `others` are linked into it. */
export function cProgram(name: string, ...others: readonly string[]): string {
  return compile(
    name,
    [name, ...others].map((each) => `${each}.c`),
    ['-pthread'],
  )
}

/** Path of a shared library, for the FFI. */
export function cLibrary(name: string): string {
  return compile(`${name}.so`, [`${name}.c`], ['-shared', '-fPIC'])
}

/** Path of a program that needs nothing of the system it runs on: a guest's init. */
export function cGuestProgram(name: string): string {
  return compile(`${name}.static`, [`${name}.c`], ['-static'])
}

function compile(output: string, sources: readonly string[], flags: readonly string[]): string {
  const known = compiled.get(output)
  if (known !== undefined) return known
  const path = join(ownDirectory(), output)
  const inputs = sources.map((source) => join(C_SOURCES, source))
  execFileSync('cc', ['-O2', '-std=gnu11', '-Wall', '-Wextra', '-Werror', ...flags, '-o', path, ...inputs], {
    stdio: 'inherit',
  })
  compiled.set(output, path)
  return path
}

/** For files that last as long as this process. */
export function ownDirectory(): string {
  directory ??= makeDirectory()
  return directory
}

function makeDirectory(): string {
  const made = mkdtempSync(join(tmpdir(), 'farfault-bench-'))
  process.on('exit', () => rmSync(made, { recursive: true, force: true }))
  return made
}

/** More than what any of the benchmarks needs anew in one run, MiB. */
const WARM_MIB = 3072

/** Has the host give this machine memory now, and not while something is measured: see c/warm.c. */
export function warmMemory(): void {
  const mib = Math.min(WARM_MIB, Math.floor(freemem() / 2 ** 21))
  execFileSync(cProgram('warm'), [String(mib)], { stdio: 'inherit' })
}

/** Path of a file that a program is to read. */
export function inputFile(name: string, bytes: Uint8Array): string {
  const path = join(ownDirectory(), name)
  writeFileSync(path, bytes)
  return path
}

/** Command line of a compiled child of ours: `bench/NAME.js` in dist. */
export function nodeChild(name: string, ...args: readonly string[]): string[] {
  return [process.execPath, fileURLToPath(new URL(`./${name}.js`, import.meta.url)), ...args]
}

/** The same command on one CPU only. */
export function pinned(command: readonly string[], cpu = 0): string[] {
  return ['taskset', '-c', String(cpu), ...command]
}

export interface Running {
  readonly pid: number
  /** A line for its standard input. */
  say(line: string): void
  /** Next line of its output. */
  line(): Promise<string>
  /** Resolves when it has ended with status 0. */
  readonly ended: Promise<void>
  /** Ends it, if it still runs: what it waits for may never come. */
  stop(): void
}

/** A program that talks in lines. What it says on standard error is passed on. */
export function start(command: readonly string[]): Running {
  const [file, ...args] = command
  const child = spawn(file!, args, { stdio: ['pipe', 'pipe', 'inherit'], timeout: RUN_MS_MAX })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const ended = (async () => {
    const [status, signal] = await once(child, 'exit')
    if (status !== 0) throw new Error(`${command.join(' ')} ended with ${signal ?? `status ${status}`}`)
  })()
  ended.catch(() => {}) // whoever waits for a line or for the end hears of it
  child.stdin.on('error', () => {}) // it has ended
  return {
    pid: child.pid ?? 0,
    ended,
    say: (line) => void child.stdin.write(`${line}\n`),
    stop: () => void child.kill(),
    async line() {
      const { value, done } = await lines.next()
      if (!done) return value
      await ended
      throw new Error(`${command.join(' ')} ended without the line that was expected`)
    },
  }
}

/** `work` with a program that talks in lines, and that has ended with status 0 after it. */
export async function withRunning<T>(
  command: readonly string[],
  work: (program: Running) => Promise<T>,
): Promise<T> {
  const program = start(command)
  try {
    const result = await work(program)
    await program.ended
    return result
  } finally {
    program.stop()
  }
}

/** Runs to the end; its one line of output, which is JSON. */
export async function runForJson<T>(command: readonly string[]): Promise<T> {
  return withRunning(command, async (program) => JSON.parse(await program.line()) as T)
}
