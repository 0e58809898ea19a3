// `farfault receive`: waits for a guest, runs it while its RAM arrives, lets it run on, and checks it. Main thread.

import { appendFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  ChannelError,
  type GuestCheck,
  GuestError,
  type GuestHandle,
  type Incoming,
  type RamBlockShape,
  receive,
  startGuest,
} from '../index.js'
import type { RECEIVE_OPTIONS } from './commands.js'
import { type Control, createControl } from './control.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { type FollowedGuest, followGuest } from './followed-guest.js'
import type { Values } from './options.js'
import { createOutput, type Output } from './output.js'
import { destinationSide, type SideGuest } from './reports.js'
import { followPrinted } from './serial.js'
import { receiveSummary } from './summary.js'
import { bytes, milliseconds } from './text.js'
import { listenSecurity } from './tls-options.js'
import type { DestinationView } from './view.js'

/** Which built-in guest runs a machine that the stream announces. */
const MODULE_OF_MACHINE = { 'farfault-v86': 'v86', 'farfault-pattern': 'pattern' } as const

type ReceiveValues = Values<typeof RECEIVE_OPTIONS>

export async function receiveCommand(values: ReceiveValues): Promise<ExitCode> {
  const control = createControl()
  const output = createOutput(`farfault receive on ${values.listen}`, values.json, control)
  const incoming = receive({
    listen: values.listen,
    ...listenSecurity(values),
    preempt: values.preempt,
    ...(values.recover === undefined ? {} : { recover: values.recover }),
    recoverTimeMs: values['recover-time'],
    guest: (machine, blocks) => makeGuest(values, machine, blocks),
  })
  output.say(`listening on ${incoming.uri}`)
  void control.tell({ type: 'listening', uri: incoming.uri })

  const arrival = await arrive(values, incoming, control, output)
  const { report } = arrival
  const ramCheck = arrival.guest === undefined ? null : await runOn(values, arrival.guest, control, output)
  const error = report.ok ? {} : { error: explain(report) }
  const side = destinationSide({ ...report, ...error }, arrival.describe(), ramCheck)
  await arrival.guest?.handle.destroy()
  if (report.ok || !arrival.interrupted || values.json) await output.finish(side, () => receiveSummary(side))
  if (side.ok) return EXIT.ok
  return arrival.interrupted && !report.ok ? EXIT.interrupted : EXIT.failed
}

/** What happened, and what it means for the guest. */
function explain({ error, cause, postcopyMs, totalMs }: Awaited<Incoming['done']>['report']): string {
  const what = cause instanceof ChannelError ? `the connection to the source was lost: ${error}` : error!
  if (totalMs === 0) return what // nobody had connected
  return postcopyMs > 0
    ? `${what}. After the switch: the guest here lacked RAM, and has been destroyed`
    : `${what}. The guest stays at the source`
}

function makeGuest(
  values: ReceiveValues,
  machine: string,
  blocks: readonly RamBlockShape[],
): Promise<GuestHandle> {
  const total = blocks.reduce((sum, { length }) => sum + length, 0)
  if (total > values['max-memory']) {
    throw new GuestError(
      `the guest has ${bytes(total)} of RAM, more than --max-memory ${bytes(values['max-memory'])}`,
    )
  }
  return startGuest({ module: moduleFor(values, machine), incoming: { machine, blocks } })
}

function moduleFor(values: ReceiveValues, machine: string): 'v86' | 'pattern' | 'ram' {
  if (values.guest === 'ram') return 'ram'
  if (Object.hasOwn(MODULE_OF_MACHINE, machine)) {
    return MODULE_OF_MACHINE[machine as keyof typeof MODULE_OF_MACHINE]
  }
  throw new GuestError(
    `the guest is a "${machine}", which farfault cannot run; --guest ram takes its RAM and keeps its devices as bytes`,
  )
}

interface Arrival {
  readonly report: Awaited<Incoming['done']>['report']
  /** Running; undefined when it did not arrive. */
  readonly guest: FollowedGuest | undefined
  readonly interrupted: boolean
  describe(): SideGuest
}

async function arrive(
  values: ReceiveValues,
  incoming: Incoming,
  control: Control,
  output: Output,
): Promise<Arrival> {
  let followed: FollowedGuest | undefined
  let unwatch = (): void => {}
  incoming.on('guest', (handle) => {
    followed = followGuest(handle, serialSink(values.serial))
  })
  incoming.on('status', (status) => {
    if (status !== 'setup') return
    output.say('a source has connected')
    unwatch = output.watch(() => viewOf(incoming, followed, output.mapCells))
  })
  const interrupts = interruptArrival(incoming, output)
  control.onInterrupt(interrupts.handler)
  const { report, guest } = await incoming.done
  unwatch()
  return {
    report,
    guest: guest === undefined ? undefined : followed,
    interrupted: interrupts.interrupted,
    describe: () => followed?.describe(report.ok) ?? noGuest(report.machine),
  }
}

/** Before the switch the source still has the guest, so giving up loses nothing. After it the guest is here alone. */
function interruptArrival(
  incoming: Incoming,
  output: Output,
): { handler(): void; readonly interrupted: boolean } {
  let interrupted = false
  let warned = false
  return {
    get interrupted() {
      return interrupted
    },
    handler() {
      if (interrupted) process.exit(EXIT.interrupted)
      if (incoming.status === 'postcopy-active' && !warned) {
        warned = true
        output.say(
          'The guest runs here by now, and would be lost: the transfer is finished first. ctrl-C again destroys the guest.',
        )
        return
      }
      interrupted = true
      output.say(
        warned
          ? 'Giving up: the guest is destroyed.'
          : 'Giving up: the guest stays at the source, if one has come.',
      )
      incoming.cancel()
    },
  }
}

const noGuest = (machine: string): SideGuest => ({
  machine,
  memoryBytes: 0,
  here: false,
  progress: 0,
  printed: followPrinted().summary(),
})

function viewOf(incoming: Incoming, guest: FollowedGuest | undefined, mapCells: number): DestinationView {
  const { status, stats } = incoming
  return {
    status,
    bytes: stats.bytes,
    requests: stats.requests,
    map: incoming.pageMap(mapCells),
    memoryBytes: guest?.memoryBytes ?? 0,
    progress: guest?.handle.progress() ?? 0,
    printed: (guest?.printed ?? followPrinted()).summary(),
  }
}

/** All RAM is here. The guest runs on for a while, or until ctrl-C; then it is stopped and checked. */
async function runOn(
  values: ReceiveValues,
  guest: FollowedGuest,
  control: Control,
  output: Output,
): Promise<GuestCheck | null> {
  const forMs = values['run-for']
  const stop = new AbortController()
  control.onInterrupt(() => stop.abort())
  guest.handle.on('failed', () => stop.abort())
  const span = forMs === Number.POSITIVE_INFINITY ? 'until ctrl-C' : `for ${milliseconds(forMs)}`
  output.say(`all RAM has arrived; the guest runs on ${span}`)
  // A timer takes at most 2^31 - 1 ms; for ever is a long row of them.
  const endMs = performance.now() + forMs
  for (let left = forMs; left > 0 && !stop.signal.aborted; left = endMs - performance.now()) {
    await sleep(Math.min(left, 2 ** 31 - 1), undefined, { signal: stop.signal }).catch(() => {})
  }
  const check = await guest.stopAndCheck()
  // Nobody here knows what the RAM of a foreign machine must hold.
  return values.guest === 'ram' && check.ok ? null : check
}

function serialSink(target: string | undefined): ((bytes: Uint8Array) => void) | undefined {
  if (target === undefined) return undefined
  if (target === '-') return (bytes) => void process.stderr.write(bytes)
  return (bytes) => appendFileSync(target, bytes)
}
