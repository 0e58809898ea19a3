// `farfault resume`: brings a parked VM to life in a QEMU, in milliseconds, and serves its RAM. Main thread.

import { setTimeout as sleep } from 'node:timers/promises'
import {
  ChannelError,
  type DemandReport,
  type ResumeOptions,
  recover,
  resume,
  type ServedImage,
  type SourceReport,
  serveImage,
  UsageError,
} from '../index.js'
import type { RESUME_OPTIONS } from './commands.js'
import { compileLess } from './compile-less.js'
import { onSignal } from './control.js'
import {
  asCommand,
  detach,
  inBackground,
  orTellError,
  recoverArguments,
  say,
  sayIgnored,
  tellParent,
} from './detach.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Operands, Values } from './options.js'
import { bytes, counted, milliseconds, number } from './text.js'
import { connectSecurity } from './tls-options.js'

type ResumeValues = Values<typeof RESUME_OPTIONS> & Operands
type Source = ServedImage['source']
type Serving = Pick<ServedImage, 'source' | 'demand'>

/** How much later than its connection QEMU's end may be noticed, ms. */
const QEMU_END_MS = 1000
/** From the end of its connections to the end of its process, ms. */
const QEMU_EXIT_MS = 10_000

export async function resumeCommand(values: ResumeValues): Promise<ExitCode> {
  const [image] = values.operands
  assertOneWay(values)
  compileLess()
  if (values.to !== undefined) return serveTo(image!, values.to, values)
  if (values.recover !== undefined && isUri(values.recover)) return goOnAt(image!, values.recover, values)
  if (values.detach && !inBackground()) return detach(values.json)
  if (values.recover !== undefined) return goOnWith(image!, values.recover, values)
  return resumeHere(image!, values)
}

function assertOneWay({ to, program, recover, reconnect, ...values }: ResumeValues): void {
  const starts = program.length > 0
  if ((to !== undefined && starts) || (to === undefined && recover === undefined && !starts)) {
    throw new UsageError('either a QEMU to run behind --, or --to URI of one that waits, is needed')
  }
  if (recover !== undefined && starts)
    throw new UsageError('--recover goes on with a VM that runs already: there is no QEMU to start')
  if (to === undefined && connectSecurity(values).tls !== undefined)
    throw new UsageError(
      '--tls-dir needs --to tcp:HOST:PORT: a QEMU that is started here is spoken to over a unix socket',
    )
  if (to !== undefined && recover !== undefined && !isUri(recover))
    throw new UsageError(
      'with --to, --recover is the URI where that QEMU listens again: tcp:HOST:PORT or unix:PATH',
    )
  if (!starts && reconnect)
    throw new UsageError('--reconnect needs a QEMU that is started here: only that is told to listen again')
  if (values.preempt && values['no-preempt'])
    throw new UsageError('--preempt and --no-preempt exclude each other')
  if (values.record && values['no-record'])
    throw new UsageError('--record and --no-record exclude each other')
}

const options = (values: ResumeValues) => ({
  push: !values['no-push'],
  aheadMs: values.ahead,
  ...(values['quiet-time'] === undefined ? {} : { quietMs: values['quiet-time'] }),
  ...(values.patience === undefined ? {} : { patienceMs: values.patience }),
  ...(values['stall-budget'] === undefined ? {} : { stallMsPerSecond: values['stall-budget'] }),
  maxBandwidth: values['max-bandwidth'],
  order: values.order,
  aroundPages: values['around-pages'],
  ...(values.record || values['no-record'] ? { record: values.record } : {}),
  ...(values['working-set'] === undefined ? {} : { workingSet: values['working-set'] }),
  recordMaxMs: values['record-time'],
  verify: !values['no-verify'],
  realTime: !values['no-real-time'],
  ...(values.preempt || values['no-preempt'] ? { preempt: values.preempt } : {}),
  recoverTimeMs: values['recover-time'],
})

const at = (uri: string | undefined) => (uri === undefined ? undefined : { uri })

const isUri = (text: string): boolean => /^(tcp|unix|fd):/.test(text)

async function resumeHere(image: string, values: ResumeValues): Promise<ExitCode> {
  const background = inBackground()
  const resumed = await orTellError(
    resume(image, {
      ...options(values),
      command: values.program,
      blocktime: values.blocktime,
      map: values.map,
      reconnect: values.reconnect,
      console: background ? 'ignore' : values.json ? 'ignore' : 'inherit',
      survives: true,
    } satisfies ResumeOptions),
  )
  const { qemu, source, resumedMs, demand } = resumed
  const served = !values.map || resumed.notMapped !== undefined
  const again = served ? recoverArguments(image, qemu.qmpPath) : undefined
  if (resumed.notMapped !== undefined) say(`RAM is served, not mapped: ${resumed.notMapped}`)
  say(
    resumedMs === undefined
      ? 'the VM is loaded, and waits for cont'
      : `the VM runs after ${milliseconds(resumedMs)}`,
  )
  if (again !== undefined) say(`if this process dies, the VM waits for: ${asCommand(again)}`)
  const { ignored } = demand()
  sayIgnored(ignored)
  tellParent({ resumedMs, recover: again, ignored })
  const report = await untilServed(source, resumed.done, qemu.exited, !values['no-push'])
  if (report === undefined) return vmEnded(resumed, values)
  if (!report.ok) {
    const waits = report.cause instanceof ChannelError && again !== undefined
    if (!waits) await qemu.kill()
    print(values, report, demand(), { resumedMs, recover: again })
    say(waits ? `${report.error}. It waits for: ${asCommand(again)}` : report.error!)
    return EXIT.failed
  }
  print(values, report, demand(), { resumedMs })
  if (background) return EXIT.ok
  const { code, signal } = await qemu.exited
  return code === 0 || signal !== null ? EXIT.ok : EXIT.failed
}

/** The report; undefined when QEMU has ended before it had all of its RAM. */
async function untilServed<Report extends SourceReport & { readonly cause?: Error }>(
  source: Source,
  done: Promise<Report>,
  ended: Promise<unknown>,
  push: boolean,
): Promise<Report | undefined> {
  onSignal(() => {
    if (source.status === 'completed') return
    say('the VM still needs RAM from here; this process goes on until all is in, or the VM has ended')
  })
  const over = ended.then(() => undefined)
  const report = await Promise.race([done, over])
  if (report === undefined || (report.ok ? push : !(report.cause instanceof ChannelError))) return report
  // Its connection ends with QEMU, and may be seen to end first; on demand there is no other end.
  return Promise.race([over, sleep(report.ok ? QEMU_EXIT_MS : QEMU_END_MS, report)])
}

/** Somebody wanted that, and nothing is lost but the VM's run. */
async function vmEnded({ source, demand }: Serving, values: ResumeValues): Promise<ExitCode> {
  source.cancel()
  const report = await source.done
  print(values, report, demand())
  say('QEMU has ended')
  return EXIT.ok
}

/** Another process served the VM and died: this one goes on, with the same image. */
async function goOnWith(image: string, qmp: string, values: ResumeValues): Promise<ExitCode> {
  const { preempt: _, ...rest } = options(values)
  const recovered = await orTellError(recover(image, { ...rest, qmp }))
  if (recovered === undefined) {
    say('the VM has all of its RAM: nothing is left to do')
    tellParent({ resumedMs: undefined, recover: undefined, ignored: null })
    return EXIT.ok
  }
  const { source, done, ended, pid, recoveredMs, demand } = recovered
  const again = recoverArguments(image, qmp)
  say(`the VM's RAM is served again after ${milliseconds(recoveredMs)}; its QEMU is process ${pid}`)
  tellParent({ resumedMs: recoveredMs, recover: again, ignored: null })
  const report = await untilServed(source, done, ended, !values['no-push'])
  if (report === undefined) return vmEnded(recovered, values)
  print(values, report, demand(), { resumedMs: recoveredMs, ...(report.ok ? {} : { recover: again }) })
  if (!report.ok) say(`${report.error}. The VM waits for: ${asCommand(again)}`)
  return report.ok ? EXIT.ok : EXIT.failed
}

async function serveTo(image: string, to: string, values: ResumeValues): Promise<ExitCode> {
  return serve(image, to, values, (source) => source.connect(to, at(values.recover)))
}

/** The same for a QEMU that somebody else has made listen again. */
async function goOnAt(image: string, uri: string, values: ResumeValues): Promise<ExitCode> {
  return serve(image, uri, values, (source) => source.takeOver({ uri }))
}

async function serve(
  image: string,
  uri: string,
  values: ResumeValues,
  begin: (source: Source) => void,
): Promise<ExitCode> {
  const { source, machine, memoryBytes, demand } = serveImage(image, {
    ...options(values),
    ...connectSecurity(values),
  })
  say(`serving a ${machine} with ${bytes(memoryBytes)} of RAM to ${uri}`)
  onSignal(() => {
    if (source.status === 'postcopy-active')
      say('the VM still needs RAM from here; this process goes on until all is in')
    else source.cancel()
  })
  sayIgnored(demand().ignored)
  begin(source)
  const report = await source.done
  print(values, report, demand())
  if (!report.ok) say(report.error!)
  return report.ok ? EXIT.ok : EXIT.failed
}

/** For programs: how long it took, and what to run when the VM waits for its RAM. */
interface Outcome {
  readonly resumedMs?: number | undefined
  readonly recover?: readonly string[] | undefined
}

function print(
  values: ResumeValues,
  report: SourceReport,
  demand: DemandReport,
  { resumedMs, recover }: Outcome = {},
): void {
  const { ok, error, totalMs, pages, requests, bytes: sent, stall, realTime = false } = report
  if (values.json) {
    const how = { ok, error, resumedMs: resumedMs ?? null, recover, totalMs }
    const fields = { ...how, pages, requests, bytes: sent, stall, realTime, demand }
    process.stdout.write(`${JSON.stringify(fields, undefined, 2)}\n`)
  } else if (ok) {
    const asked = `${counted(requests, 'request')}, ${number(pages.requested)} pages answered`
    say(
      `all RAM is in after ${milliseconds(totalMs)}: ${bytes(sent)}, ${number(pages.normal)} pages; ${asked}`,
    )
  }
  if (ok && stall !== undefined && !values.json) say(stallText(stall))
  sayDemand(demand)
}

const stallText = ({ waitedMs, missedMs }: NonNullable<SourceReport['stall']>): string =>
  `the VM waited about ${milliseconds(waitedMs)} for pages, ${missedMs === 0 ? 'within the budget' : `for ${milliseconds(missedMs)} over the budget, which could not be kept`}`

function sayDemand({ run, workingSet, written, notWritten }: DemandReport): void {
  if (notWritten !== null) say(`the working set was not written: ${notWritten}`)
  if (run === null) return
  if (workingSet !== null) {
    const { ahead, late, missed } = run
    say(
      `of the working set${workingSet.earlier ? ' of an earlier image' : ''} ${counted(ahead, 'page')} came before they were asked for, ${number(late)} did not; ${number(missed)} others were asked for`,
    )
  }
  if (written !== null && written.records !== workingSet?.records)
    say(`the working set has ${counted(written.pages, 'page')} now: ${written.file}`)
}
