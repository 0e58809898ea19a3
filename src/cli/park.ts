// `farfault park`: a VM's whole state goes into an image. Main thread.

import { messageOf } from '../errors.js'
import {
  CancelledError,
  convertStream,
  type ParkProgress,
  type ParkReport,
  park,
  parkFrom,
  UsageError,
} from '../index.js'
import type { PARK_OPTIONS } from './commands.js'
import { createControl } from './control.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Operands, Values } from './options.js'
import { createProgressLine, createRate, type ProgressLine } from './progress-line.js'
import { bytes, milliseconds, number } from './text.js'
import { listenSecurity } from './tls-options.js'
import { version } from './version.js'

type ParkValues = Values<typeof PARK_OPTIONS>

/** What `--json` prints. The shape is public; null is what is not known. */
export interface ParkSideReport {
  readonly ok: boolean
  readonly error: string | null
  readonly image: string
  readonly how: 'qmp' | 'listen' | 'from'
  readonly machine: string | null
  readonly mode: ParkReport['mode'] | null
  readonly memoryBytes: number | null
  /** Of the stream; with --native of the pages. */
  readonly bytes: number | null
  readonly fileBytes: number | null
  readonly diskBytes: number | null
  readonly pages: { readonly normal: number; readonly zero: number } | null
  readonly durationMs: number
  /** From the stop of the VM to the end. */
  readonly downtimeMs: number | null
  readonly qemu: string | null
}

interface Job {
  readonly values: ParkValues
  readonly path: string
  readonly by: string
  readonly signal: AbortSignal
  readonly line: ProgressLine
}

type Done = Omit<ParkSideReport, 'ok' | 'error' | 'image' | 'how'>

const NOTHING: Done = {
  machine: null,
  mode: null,
  memoryBytes: null,
  bytes: null,
  fileBytes: null,
  diskBytes: null,
  pages: null,
  durationMs: 0,
  downtimeMs: null,
  qemu: null,
}

const WORK: Readonly<Record<ParkSideReport['how'], (job: Job) => Promise<Done>>> = {
  qmp: parkRunning,
  listen: parkIncoming,
  from: convert,
}

export async function parkCommand(values: ParkValues & Operands): Promise<ExitCode> {
  const how = wayOf(values)
  const path = values.operands[0]!
  const line = createProgressLine(values.json)
  const interrupt = new AbortController()
  createControl().onInterrupt(() => {
    if (interrupt.signal.aborted) process.exit(EXIT.interrupted)
    line.say('Giving up: the VM goes on where it is.')
    interrupt.abort(new CancelledError('parking was cancelled'))
  })
  const job = { values, path, by: `farfault ${version()}`, signal: interrupt.signal, line }
  const startMs = performance.now()
  try {
    const done = await WORK[how](job)
    finish(values.json, line, { ok: true, error: null, image: path, how, ...done })
    return EXIT.ok
  } catch (error) {
    if (error instanceof UsageError) throw error
    line.end()
    const message = messageOf(error)
    const durationMs = performance.now() - startMs
    const failed = { ok: false, error: message, image: path, how, ...NOTHING, durationMs }
    if (values.json) finish(true, line, failed)
    process.stderr.write(`farfault: ${message}\n`)
    return interrupt.signal.aborted ? EXIT.interrupted : EXIT.failed
  }
}

/** @throws UsageError for options that do not go together. */
function wayOf({
  qmp,
  listen,
  from,
  native,
  quit,
  insecure,
  'tls-dir': tls,
}: ParkValues): ParkSideReport['how'] {
  if (from !== undefined && (qmp ?? listen) !== undefined)
    throw new UsageError('--from goes with neither --qmp nor --listen')
  if (qmp === undefined && (native || quit))
    throw new UsageError(`${native ? '--native' : '--quit'} needs --qmp SOCKET`)
  if (native && listen !== undefined) throw new UsageError('--native needs no --listen: QEMU writes the file')
  if (listen === undefined && (insecure || tls !== undefined))
    throw new UsageError(`${insecure ? '--insecure' : '--tls-dir'} needs --listen tcp:HOST:PORT`)
  if (qmp !== undefined) return 'qmp'
  if (listen !== undefined) return 'listen'
  if (from !== undefined) return 'from'
  throw new UsageError('where the VM comes from is missing: --qmp SOCKET, --listen URI or --from FILE')
}

async function parkRunning({ values, path, by, signal, line }: Job): Promise<Done> {
  const render = progressText()
  const parked = await park({
    ...{ qmp: values.qmp!, path, by, signal },
    ...{ native: values.native, replace: values.replace, quit: values.quit },
    ...(values.listen === undefined ? {} : { listen: values.listen }),
    ...listenSecurity(values),
    downtimeLimitMs: values['downtime-limit'],
    onProgress: (progress) => line.show(() => render(progress)),
  })
  return { ...doneOf(parked), downtimeMs: parked.downtimeMs, qemu: parked.qemu }
}

async function parkIncoming({ values, path, by, signal, line }: Job): Promise<Done> {
  const parking = parkFrom({
    ...{ listen: values.listen!, path, by, replace: values.replace },
    ...listenSecurity(values),
  })
  line.say(`listening on ${parking.uri}`)
  signal.addEventListener('abort', parking.cancel)
  const rate = createRate()
  const timer = setInterval(() => {
    const { bytes: received, memoryBytes, connectedAtUs, storingAtUs } = parking.stats
    if (connectedAtUs === 0) return
    const speed = rate(received)
    line.show(() =>
      storingAtUs !== 0
        ? 'writing to disk'
        : `${bytes(received)} received of a VM with ${bytes(memoryBytes)}, ${bytes(speed)}/s`,
    )
  }, 50)
  const report = await parking.done
  clearInterval(timer)
  if (!report.ok) throw report.cause
  return doneOf(report)
}

async function convert({ values, path, by, signal, line }: Job): Promise<Done> {
  const startMs = performance.now()
  let total = 0
  const written = await convertStream(values.from!, path, {
    ...{ by, signal, replace: values.replace },
    onProgress(done, of) {
      total = of
      line.show(() => `${Math.floor((done / of) * 100)} % of ${bytes(of)} converted`)
    },
  })
  return {
    ...NOTHING,
    bytes: total,
    fileBytes: written.fileBytes,
    diskBytes: written.diskBytes,
    pages: { normal: written.presentPages, zero: written.memoryBytes / 4096 - written.presentPages },
    machine: written.machine,
    memoryBytes: written.memoryBytes,
    durationMs: performance.now() - startMs,
  }
}

function doneOf({ ok: _, error: __, returnPath: ___, ...report }: ParkReport): Done {
  const { machine, mode, memoryBytes, bytes, fileBytes, diskBytes, pages, durationMs } = report
  return {
    ...{ machine, mode, memoryBytes, bytes, fileBytes, diskBytes, pages, durationMs },
    downtimeMs: null,
    qemu: null,
  }
}

/** `43 %, 112 MiB left, 210 MiB/s, dirtied at 12 MiB/s, pass 2, 2.1 s to go`. */
function progressText(): (progress: ParkProgress) => string {
  const sending = createRate()
  const shrinking = createRate()
  return ({ remainingBytes, totalBytes, sentBytes, passes, dirtyBytesPerSecond, storing }) => {
    if (totalBytes === 0) return 'QEMU makes ready'
    const speed = sending(sentBytes)
    const shrinks = -shrinking(remainingBytes)
    if (storing) return 'the VM is stopped; writing to disk'
    return [
      `${Math.floor((1 - remainingBytes / totalBytes) * 100)} %`,
      `${bytes(remainingBytes)} left`,
      `${bytes(speed)}/s`,
      ...(dirtyBytesPerSecond > 0 ? [`written to at ${bytes(dirtyBytesPerSecond)}/s`] : []),
      ...(passes > 1 ? [`pass ${passes}`] : []),
      ...(shrinks > 0 ? [`${milliseconds((remainingBytes / shrinks) * 1000)} to go`] : []),
    ].join(', ')
  }
}

function finish(json: boolean, line: ProgressLine, report: ParkSideReport): void {
  line.end()
  if (json) process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`)
  else for (const each of summary(report)) line.say(each)
}

function summary(report: ParkSideReport): string[] {
  const { image, machine, memoryBytes, diskBytes, pages, durationMs, downtimeMs, how } = report
  const what = how === 'from' ? 'converted' : 'parked'
  return [
    `${what} in ${milliseconds(durationMs)}: ${image}, ${bytes(diskBytes ?? 0)} on disk`,
    `  ${machine} with ${bytes(memoryBytes ?? 0)} of RAM: ${number(pages?.normal ?? 0)} pages, and ${number(pages?.zero ?? 0)} that are zero`,
    ...(downtimeMs === null ? [] : [`  the VM was stopped for the last ${milliseconds(downtimeMs)}`]),
    ...(how === 'from' ? [] : ['  the VM is stopped; its state is in the image']),
  ]
}
