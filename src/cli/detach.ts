// A resume that goes on in the background, and what is said about it: what runs, and what to run if that dies. Main thread.

import { spawn } from 'node:child_process'
import { resolve } from 'node:path'
import { messageOf } from '../errors.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { milliseconds } from './text.js'

/** Set for the process that serves in the background. */
const DETACHED = 'FARFAULT_DETACHED'

/** From the background process to the one that started it. `recover`: arguments of farfault that go on where it died. */
export type Word =
  | {
      readonly resumedMs: number | undefined
      readonly recover: readonly string[] | undefined
      /** Why the working set is not used. */
      readonly ignored: string | null
    }
  | { readonly error: string }

/** Words for people: standard output is QEMU's console, or the report's. */
export const say = (line: string): void => void process.stderr.write(`farfault: ${line}\n`)

export function sayIgnored(why: string | null): void {
  if (why !== null) say(`the working set is not used: ${why}`)
}

export const inBackground = (): boolean => process.env[DETACHED] === '1'

/** In the background process: it needs its parent no more. */
export function tellParent(word: Word): void {
  if (inBackground() && process.connected)
    process.send!(word, undefined, undefined, () => process.disconnect())
}

export async function orTellError<T>(promise: Promise<T>): Promise<T> {
  try {
    return await promise
  } catch (error) {
    tellParent({ error: messageOf(error) })
    throw error
  }
}

/** Options that are about a QEMU that is started. */
const STARTING = new Set(['--preempt', '--blocktime', '--map', '--reconnect'])

/** This command's own arguments, for a VM that runs: the same image from anywhere, and the same options. */
export function recoverArguments(image: string, qmp: string): string[] {
  const [given] = splitAt(process.argv.slice(2), '--')
  const kept = given
    .filter((argument) => !STARTING.has(argument) && !argument.startsWith('--recover='))
    .filter((argument, i, all) => argument !== '--recover' && all[i - 1] !== '--recover')
  return [...kept.map((argument) => (argument === image ? resolve(image) : argument)), '--recover', qmp]
}

function splitAt(list: readonly string[], item: string): [string[], string[]] {
  const at = list.indexOf(item)
  return at < 0 ? [[...list], []] : [list.slice(0, at), list.slice(at + 1)]
}

/** As it can be pasted into a shell. */
export const asCommand = (args: readonly string[]): string =>
  ['farfault', ...args]
    .map((argument) =>
      /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`,
    )
    .join(' ')

/** The same command in a process of its own, which this one leaves when the VM runs. */
export function detach(json: boolean): Promise<ExitCode> {
  const child = spawn(process.execPath, process.argv.slice(1), {
    detached: true,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    env: { ...process.env, [DETACHED]: '1' },
  })
  return new Promise((done) => {
    child.on('message', (word: Word) => {
      child.unref()
      if ('error' in word) say(word.error)
      else report(word, child.pid!, json)
      done('error' in word ? EXIT.failed : EXIT.ok)
    })
    child.on('exit', () => {
      say('the server ended before the VM ran')
      done(EXIT.failed)
    })
  })
}

function report(
  { resumedMs, recover, ignored }: Exclude<Word, { error: string }>,
  server: number,
  json: boolean,
): void {
  sayIgnored(ignored)
  if (json) {
    process.stdout.write(`${JSON.stringify({ ok: true, resumedMs: resumedMs ?? null, server, recover })}\n`)
    return
  }
  say(`the VM runs after ${milliseconds(resumedMs ?? 0)}; process ${server} serves its RAM until all is in`)
  if (recover !== undefined) say(`if that process dies, the VM waits for: ${asCommand(recover)}`)
}
