// `farfault resume`: brings a parked VM to life in a QEMU, in milliseconds, and serves its RAM. Main thread.

import { spawn } from 'node:child_process'
import {
  type DemandReport,
  type Resumed,
  type ResumeOptions,
  resume,
  type SourceReport,
  serveImage,
  UsageError,
} from '../index.js'
import type { RESUME_OPTIONS } from './commands.js'
import { onSignal } from './control.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Operands, Values } from './options.js'
import { bytes, counted, milliseconds, number } from './text.js'
import { connectSecurity } from './tls-options.js'

type ResumeValues = Values<typeof RESUME_OPTIONS> & Operands

/** Set for the process that serves in the background. */
const DETACHED = 'FARFAULT_DETACHED'

/** From the background process to the one that started it. */
type Word =
  | { readonly resumedMs: number | undefined; readonly ignored: string | null }
  | { readonly error: string }

export async function resumeCommand(values: ResumeValues): Promise<ExitCode> {
  const [image] = values.operands
  if ((values.to === undefined) === (values.program.length === 0)) {
    throw new UsageError('either a QEMU to run behind --, or --to URI of one that waits, is needed')
  }
  if (values.to === undefined && connectSecurity(values).tls !== undefined)
    throw new UsageError(
      '--tls-dir needs --to tcp:HOST:PORT: a QEMU that is started here is spoken to over a unix socket',
    )
  if (values.to !== undefined && values.reconnect)
    throw new UsageError('--reconnect needs a QEMU that is started here: only that is told to listen again')
  if (values.record && values['no-record'])
    throw new UsageError('--record and --no-record exclude each other')
  if (values.to !== undefined) return serveTo(image!, values.to, values)
  if (values.detach && process.env[DETACHED] !== '1') return detach(values)
  return resumeHere(image!, values)
}

const options = (values: ResumeValues) => ({
  push: !values['no-push'],
  quietMs: values['quiet-time'],
  maxBandwidth: values['max-bandwidth'],
  order: values.order,
  aroundPages: values['around-pages'],
  ...(values.record || values['no-record'] ? { record: values.record } : {}),
  recordMaxMs: values['record-time'],
  verify: !values['no-verify'],
  preempt: values.preempt,
  recoverTimeMs: values['recover-time'],
})

/** Words for people: standard output is QEMU's console, or the report's. */
const say = (line: string): void => void process.stderr.write(`farfault: ${line}\n`)

async function resumeHere(image: string, values: ResumeValues): Promise<ExitCode> {
  const background = process.env[DETACHED] === '1'
  const tell = (word: Word): void => {
    if (background && process.connected) process.send!(word, undefined, undefined, () => process.disconnect())
  }
  let resumed: Resumed
  try {
    resumed = await resume(image, {
      ...options(values),
      command: values.program,
      blocktime: values.blocktime,
      map: values.map,
      reconnect: values.reconnect,
      console: background ? 'ignore' : values.json ? 'ignore' : 'inherit',
      survives: true,
    } satisfies ResumeOptions)
  } catch (error) {
    tell({ error: error instanceof Error ? error.message : String(error) })
    throw error
  }
  const { qemu, source, resumedMs } = resumed
  if (resumed.notMapped !== undefined) say(`RAM is served, not mapped: ${resumed.notMapped}`)
  say(
    resumedMs === undefined
      ? 'the VM is loaded, and waits for cont'
      : `the VM runs after ${milliseconds(resumedMs)}`,
  )
  const { ignored } = resumed.demand()
  sayIgnored(ignored)
  tell({ resumedMs, ignored })
  onSignal(() => {
    if (source.status === 'completed') return
    say('the VM still needs RAM from here; this process goes on until all is in, or the VM has ended')
  })
  const report = await Promise.race([resumed.done, qemu.exited.then(() => undefined)])
  if (report === undefined) return vmEnded(resumed, values)
  if (!report.ok) {
    await qemu.kill()
    print(values, report, resumedMs, resumed.demand())
    say(report.error!)
    return EXIT.failed
  }
  print(values, report, resumedMs, resumed.demand())
  if (background) return EXIT.ok
  const { code, signal } = await qemu.exited
  return code === 0 || signal !== null ? EXIT.ok : EXIT.failed
}

/** QEMU ended before it had all of its RAM: somebody wanted that, and nothing is lost but the VM's run. */
async function vmEnded({ source, demand }: Resumed, values: ResumeValues): Promise<ExitCode> {
  source.cancel()
  const report = await source.done
  print(values, report, undefined, demand())
  say('QEMU has ended')
  return EXIT.ok
}

async function serveTo(image: string, to: string, values: ResumeValues): Promise<ExitCode> {
  const { source, machine, memoryBytes, demand } = serveImage(image, {
    ...options(values),
    ...connectSecurity(values),
  })
  say(`serving a ${machine} with ${bytes(memoryBytes)} of RAM to ${to}`)
  onSignal(() => {
    if (source.status === 'postcopy-active')
      say('the VM still needs RAM from here; this process goes on until all is in')
    else source.cancel()
  })
  sayIgnored(demand().ignored)
  source.connect(to)
  const report = await source.done
  print(values, report, undefined, demand())
  if (!report.ok) say(report.error!)
  return report.ok ? EXIT.ok : EXIT.failed
}

function print(
  values: ResumeValues,
  report: SourceReport,
  resumedMs: number | undefined,
  demand: DemandReport,
): void {
  const { ok, error, totalMs, pages, requests, bytes: sent } = report
  if (values.json) {
    const resumed = resumedMs ?? null
    process.stdout.write(
      `${JSON.stringify({ ok, error, resumedMs: resumed, totalMs, pages, requests, bytes: sent, demand }, undefined, 2)}\n`,
    )
  } else if (ok) {
    const asked = `${counted(requests, 'request')}, ${number(pages.requested)} pages answered`
    say(
      `all RAM is in after ${milliseconds(totalMs)}: ${bytes(sent)}, ${number(pages.normal)} pages; ${asked}`,
    )
  }
  sayDemand(demand)
}

function sayIgnored(why: string | null): void {
  if (why !== null) say(`the working set is not used: ${why}`)
}

function sayDemand({ run, workingSet, written, notWritten }: DemandReport): void {
  if (notWritten !== null) say(`the working set was not written: ${notWritten}`)
  if (run === null) return
  if (workingSet !== null) {
    const { ahead, late, missed } = run
    say(
      `of the working set ${counted(ahead, 'page')} came before they were asked for, ${number(late)} did not; ${number(missed)} others were asked for`,
    )
  }
  if (written !== null && written.records !== workingSet?.records)
    say(`the working set has ${counted(written.pages, 'page')} now: ${written.file}`)
}

/** The same command in a process of its own, which this one leaves when the VM runs. */
function detach(values: ResumeValues): Promise<ExitCode> {
  const child = spawn(process.execPath, process.argv.slice(1), {
    detached: true,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    env: { ...process.env, [DETACHED]: '1' },
  })
  return new Promise((resolve) => {
    child.on('message', (word: Word) => {
      if ('error' in word) {
        say(word.error)
        resolve(EXIT.failed)
        return
      }
      const { resumedMs = null, ignored } = word
      sayIgnored(ignored)
      if (values.json) process.stdout.write(`${JSON.stringify({ ok: true, resumedMs, server: child.pid })}\n`)
      else
        say(
          `the VM runs after ${milliseconds(resumedMs ?? 0)}; process ${child.pid} serves its RAM until all is in`,
        )
      child.unref()
      resolve(EXIT.ok)
    })
    child.on('exit', () => {
      say('the server ended before the VM ran')
      resolve(EXIT.failed)
    })
  })
}
