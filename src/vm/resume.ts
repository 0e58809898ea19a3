// `resume`: starts a QEMU and brings a parked VM to life in it. Main thread.
//
// QEMU believes that it receives a postcopy migration: the image plays the source. It runs as soon as the device state
// is loaded; RAM comes on demand, and the rest behind it.

import { join } from 'node:path'
import { GuestError, ImageError, UsageError } from '../errors.js'
import type { DemandReport } from '../image/demand.js'
import { type ServeOptions, serveImage } from '../image/serve.js'
import { type LaunchOptions, launchQemu, type Qemu, type QemuExit } from '../qemu/launch.js'
import { knownCapabilities, setMigrationCapabilities } from '../qemu/migration.js'
import type { SourceReport } from '../source/report.js'
import type { Source } from '../source/start-source.js'
import { outcomeOf, reconnectWhenPaused } from './listen-again.js'
import { planMapping } from './map.js'
import { removeEnded, writeRecord } from './record.js'
import { explainRefusal } from './refusals.js'

export interface ResumeOptions extends Omit<ServeOptions, 'mapped' | 'tls' | 'preempt'> {
  /**
   * Program and arguments, as at the save: the machine must be the same. `-incoming defer`, a QMP socket, and that its threads have
   * names, are added.
   */
  readonly command: readonly string[]
  /** Requested pages go over a second connection (postcopy-preempt). Default: where this QEMU knows how. */
  readonly preempt?: boolean
  /** Let QEMU measure how long each vCPU waits for pages: `query-migrate` says. */
  readonly blocktime?: boolean
  /** Map the machine's RAM from the image instead of serving it, where that is possible; see map.ts. */
  readonly map?: boolean
  /** When the connection to QEMU is lost, let it listen again and go on, for `recoverTimeMs`. Not with map. */
  readonly reconnect?: boolean
  readonly console?: NonNullable<LaunchOptions['console']>
  /** QEMU may outlive this process. Before all RAM is in it then waits for somebody who goes on: see recover.ts. */
  readonly survives?: boolean
}

export interface Resumed {
  readonly qemu: Qemu
  readonly source: Source
  /** From `migrate-incoming` to QEMU's RESUME event, ms. Undefined with `-S`: then it waits for `cont`. */
  readonly resumedMs: number | undefined
  /** Why `map` was asked for in vain. */
  readonly notMapped?: string
  /** What the VM asks for: so far, or in all when `done` has resolved. */
  demand(): DemandReport
  /** All RAM is in (or, without push, the VM has ended). Look at `ok`. */
  readonly done: Promise<SourceReport & { readonly cause?: Error }>
}

const PREEMPT = 'postcopy-preempt'
/** How long QEMU may take to load the device state, ms. */
const LOAD_TIMEOUT_MS = 30_000

/**
 * Resolves when the VM runs (or, with `-S`, could). Then the caller has the QEMU.
 * @throws ImageError, UsageError, HostUnsupportedError before anything is started; GuestError with QEMU's reason, in plain
 * words, when it does not take the VM. No QEMU is left then, and the image is as it was.
 */
export async function resume(imagePath: string, options: ResumeOptions): Promise<Resumed> {
  const [path, ...args] = options.command
  if (path === undefined) throw new UsageError('a QEMU to run is missing')
  const plan = options.map === true ? await planMapping(imagePath, options.command) : undefined
  const mapped = plan !== undefined && 'block' in plan ? plan : undefined
  const reconnect = options.reconnect === true && mapped === undefined
  const { preempt: wanted, ...rest } = options
  const serve = { ...rest, ...(mapped === undefined ? {} : { mapped: mapped.block }) }
  const { machine, identity, source, demand } = serveImage(imagePath, serve)
  let qemu: Qemu | undefined
  try {
    qemu = await launchQemu({
      path,
      args: [...args, ...(mapped?.args ?? []), '-incoming', 'defer', '-name', 'debug-threads=on'],
      console: options.console ?? 'inherit',
      survives: options.survives ?? false,
    })
    const preempt = mapped === undefined && (wanted ?? (await knownCapabilities(qemu.qmp)).has(PREEMPT))
    if (mapped === undefined)
      writeRecord(qemu.directory, { image: imagePath, identity, preempt, pid: qemu.pid })
    await setMigrationCapabilities(
      qemu.qmp,
      mapped === undefined ? capabilitiesFor(options, preempt) : { events: true },
    )
    await source.ready
    const handed = await hand(qemu, source, { preempt, reconnect, paused: args.includes('-S') })
    removeEnded() // now nobody waits for it
    const resumed = { ...handed, demand, done: outcomeOf(source, options.push ?? true) }
    return plan !== undefined && 'reason' in plan ? { ...resumed, notMapped: plan.reason } : resumed
  } catch (error) {
    source.cancel()
    const exit = await qemu?.kill()
    throw refusal(error, machine, qemu, exit)
  }
}

const capabilitiesFor = (
  { blocktime = false }: ResumeOptions,
  preempt: boolean,
): Record<string, boolean> => ({
  events: true,
  'postcopy-ram': true,
  ...(blocktime ? { 'postcopy-blocktime': true } : {}),
  ...(preempt ? { [PREEMPT]: true } : {}),
})

async function hand(
  qemu: Qemu,
  source: Source,
  { preempt, reconnect, paused }: { preempt: boolean; reconnect: boolean; paused: boolean },
): Promise<Omit<Resumed, 'demand' | 'done'>> {
  const uri = `unix:${join(qemu.directory, 'migrate')}`
  const startMs = performance.now()
  const running = qemu.qmp.waitForEvent('RESUME', { timeoutMs: LOAD_TIMEOUT_MS })
  running.catch(() => {}) // the source's or QEMU's own end may be the better reason
  await qemu.qmp.execute('migrate-incoming', { uri })
  source.connect(uri, reconnect ? 'when-told' : undefined, preempt)
  if (reconnect) reconnectWhenPaused(qemu.qmp, source, qemu.directory)
  // The end of the source is no reason to stop waiting if it went well: a small VM has all its RAM at once.
  const failed = source.done.then(async (report) => {
    // A VM that was stopped when it was parked stays so after a precopy; after postcopy QEMU runs it in any case.
    if (report.ok && report.mode === 'precopy' && !paused) await qemu.qmp.execute('cont')
    if (report.ok) return never
    throw report.cause ?? new GuestError(report.error ?? 'the source failed')
  })
  await Promise.race([paused ? untilHandedOver(source) : running, failed, ended(qemu)])
  return { qemu, source, resumedMs: paused ? undefined : performance.now() - startMs }
}

const never = new Promise<never>(() => {})

async function ended(qemu: Qemu): Promise<never> {
  const { code, signal } = await qemu.exited
  throw new GuestError(`QEMU ended (${signal ?? `exit code ${code}`}) before the VM ran`)
}

/** The device state is with QEMU. */
function untilHandedOver(source: Source): Promise<void> {
  return new Promise((resolve) => {
    if (source.status === 'postcopy-active') resolve()
    source.on('status', (status) => {
      if (status === 'postcopy-active' || status === 'completed') resolve()
    })
  })
}

/** What QEMU said when it did not take the VM is a better reason than a lost connection; but not than why it was cut off. */
function refusal(
  error: unknown,
  machine: string,
  qemu: Qemu | undefined,
  exit: QemuExit | undefined,
): unknown {
  if (qemu === undefined || error instanceof ImageError) return error
  const said = qemu.errors().trim()
  if (said === '' || exit === undefined) return error
  return new GuestError(explainRefusal(said, machine), { cause: error })
}
