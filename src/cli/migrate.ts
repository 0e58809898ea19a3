// `farfault migrate`: boots a guest, lets it run, and moves it. Main thread.

import { setTimeout as sleep } from 'node:timers/promises'
import { type GuestCheck, type Migration, migrate, type SourceReport, startGuest } from '../index.js'
import type { MIGRATE_OPTIONS } from './commands.js'
import { type Control, createControl } from './control.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { type FollowedGuest, followGuest } from './followed-guest.js'
import { guestSpec } from './guest-options.js'
import type { Values } from './options.js'
import { createOutput, type Output } from './output.js'
import { type SideReport, sourceSide } from './reports.js'
import { migrateSummary } from './summary.js'
import { bytes } from './text.js'
import { connectSecurity } from './tls-options.js'
import type { SourceView } from './view.js'

/** How long the guest is watched after a failure to see that it runs, ms. */
const PROOF_MS = 300
const PROOF_MS_MAX = 1000
/** A second ctrl-C counts as one only so soon after the first, ms. */
const AGAIN_MS = 5000

type MigrateValues = Values<typeof MIGRATE_OPTIONS>

export async function migrateCommand(values: MigrateValues): Promise<ExitCode> {
  connectSecurity(values) // a wrong one is said before anything is started
  const control = createControl()
  const output = createOutput(`farfault migrate: ${values.guest} guest to ${values.to}`, values.json, control)
  const guest = followGuest(await startGuest(guestSpec(values)))
  await guest.handle.start()
  output.say(`${guest.handle.machine} guest with ${bytes(guest.memoryBytes)} of RAM runs here`)
  await sleep(values.after)

  const { report, interrupted } = await transfer(values, guest, control, output)
  if (report.ok) return wentOver(report, guest, output)
  const failed = interrupted ? EXIT.interrupted : EXIT.failed
  if (!report.guestHere) {
    await guest.handle.destroy()
    await end(output, sourceSide(report, guest.describe(false), null))
    return failed
  }
  output.say(report.error!)
  const keep = !control.coordinated && (values.keep || interrupted)
  const ramCheck = await stayedHere(guest, keep, control, output)
  await end(output, sourceSide(report, guest.describe(true), ramCheck))
  return failed
}

async function wentOver(report: SourceReport, guest: FollowedGuest, output: Output): Promise<ExitCode> {
  await guest.handle.stop() // it is; the answer comes behind all that it printed
  const side = sourceSide(report, guest.describe(false), null)
  await guest.handle.destroy()
  await end(output, side)
  return EXIT.ok
}

const end = (output: Output, report: SideReport): Promise<void> =>
  output.finish(report, () => migrateSummary(report))

interface Transfer {
  readonly report: SourceReport
  /** ctrl-C was the cause of its failure. */
  readonly interrupted: boolean
}

async function transfer(
  values: MigrateValues,
  guest: FollowedGuest,
  control: Control,
  output: Output,
): Promise<Transfer> {
  const migration = migrate(guest.handle, {
    to: values.to,
    postcopy: values.postcopy,
    downtimeLimitMs: values['downtime-limit'],
    maxBandwidth: values['max-bandwidth'],
    maxPostcopyBandwidth: values['max-postcopy-bandwidth'],
    order: values.order,
    aroundPages: values['around-pages'],
    ...connectSecurity(values),
    ...(values.recover === undefined ? {} : { recover: values.recover }),
    recoverTimeMs: values['recover-time'],
  })
  const interrupts = interruptTransfer(migration, output)
  control.onInterrupt(interrupts.handler)
  control.onSwitch(() => migration.startPostcopy(), output.entered)
  const unwatchFailure = guest.handle.on('failed', (error) => {
    output.say(`the guest broke: ${error.message}`)
    migration.cancel()
  })
  const unwatch = output.watch(() => viewOf(migration, guest))
  const report = await migration.done
  unwatch()
  unwatchFailure()
  return { report, interrupted: interrupts.cancelled }
}

/** Before the switch ctrl-C cancels. After it RAM that the guest needs is here, so only a second one ends it. */
function interruptTransfer(
  migration: Migration,
  output: Output,
): { handler(): void; readonly cancelled: boolean } {
  let cancelled = false
  let warnedMs = Number.NEGATIVE_INFINITY
  migration.on('status', (status) => {
    if (status === 'postcopy-active' && cancelled) warn('It is too late to cancel: ')
  })
  function warn(why: string): void {
    cancelled = false
    warnedMs = performance.now()
    output.say(
      `${why}the guest runs at the destination and still needs RAM from here. This process goes on until all is sent; ` +
        'ctrl-C again within 5 s abandons the guest.',
    )
  }
  return {
    get cancelled() {
      return cancelled
    },
    handler() {
      if (migration.status !== 'postcopy-active') {
        cancelled = true
        output.say('Cancelling: the guest stays here.')
        migration.cancel()
      } else if (performance.now() - warnedMs > AGAIN_MS) {
        warn('')
      } else {
        output.say('Abandoned: the guest at the destination is lost.')
        process.exit(EXIT.interrupted)
      }
    },
  }
}

function viewOf({ status, stats }: Migration, { handle, memoryBytes, printed }: FollowedGuest): SourceView {
  return {
    status,
    bytes: stats.bytesSent,
    bytesRemaining: stats.bytesRemaining,
    passes: stats.passes,
    requests: stats.requests,
    memoryBytes,
    progress: handle.progress(),
    printed: printed.summary(),
  }
}

/** The guest was not lost: shows that it runs, keeps it if that is wanted, and checks its RAM in the end. */
async function stayedHere(
  guest: FollowedGuest,
  keep: boolean,
  control: Control,
  output: Output,
): Promise<GuestCheck> {
  const interrupted = new Promise<void>((resolve) => control.onInterrupt(resolve))
  const runs = await guest.getsOn(PROOF_MS, PROOF_MS_MAX)
  if (!runs) {
    const detail = guest.failure?.message ?? `it made no progress in ${PROOF_MS_MAX} ms`
    return { ok: false, detail: `the guest does not run on here: ${detail}` }
  }
  output.say(`The guest runs on here, ${guest.handle.progress()} done so far.`)
  if (keep) {
    output.say('It is kept until ctrl-C.')
    await interrupted
  }
  return guest.stopAndCheck()
}
