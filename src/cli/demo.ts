// `farfault demo`: runs a receiver and a source as two processes, shows the move, and judges it. Main thread; the
// coordinator: it owns both processes, and neither outlives it.

import { UsageError } from '../errors.js'
import type { DEMO_OPTIONS } from './commands.js'
import { onSignal, type SideMessage } from './control.js'
import { createDisplay, type Display } from './display.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { guestArguments } from './guest-options.js'
import type { Values } from './options.js'
import { demoReport } from './reports.js'
import { type SideProcess, startSide } from './side-process.js'
import { demoSummary } from './summary.js'
import { bytes } from './text.js'
import type { DestinationView, SourceView } from './view.js'

const FRAME_MS = 66
const SLOW_BYTES_PER_SECOND = 64 * 1024 * 1024
/** When one side has failed the other ends by itself; it is helped along after this, and ended after that, ms. */
const HELP_AFTER_MS = 1300
const KILL_AFTER_MS = 1900

type DemoValues = Values<typeof DEMO_OPTIONS>

interface Stage {
  readonly values: DemoValues
  readonly display: Display
  readonly troubles: string[]
  interrupted: boolean
  source: SideProcess | undefined
  destination: SideProcess | undefined
  sourceView: SourceView | undefined
  destinationView: DestinationView | undefined
}

export async function demo(values: DemoValues): Promise<ExitCode> {
  const display = createDisplay(values.json ? process.stderr : process.stdout, { quiet: values.json })
  const stage: Stage = {
    values,
    display,
    troubles: [],
    interrupted: false,
    source: undefined,
    destination: undefined,
    sourceView: undefined,
    destinationView: undefined,
  }
  onSignal(() => interrupt(stage))
  const draw = setInterval(() => show(stage), FRAME_MS)
  await play(stage)
  clearInterval(draw)
  show(stage)
  display.end()
  return judge(stage)
}

async function play(stage: Stage): Promise<void> {
  const { values, display } = stage
  const receiveArgs = ['receive', '--listen=tcp:127.0.0.1:0', `--run-for=${values['run-for']}ms`]
  const uri = await new Promise<string | undefined>((resolve) => {
    stage.destination = startSide('receiver', receiveArgs, (message) => {
      if (message.type === 'listening') resolve(message.uri)
      else take(stage, message)
    })
    void ended(stage, stage.destination).then(() => resolve(undefined))
  })
  if (uri === undefined || stage.interrupted) return
  stage.source = startSide('source', migrateArguments(values, uri), (message) => take(stage, message))
  const { source, destination } = stage
  display.say(`source: process ${source.pid}, receiver: process ${destination!.pid} on ${uri}`)
  destination!.order({ order: 'map', cells: display.mapCells })
  await Promise.all([ended(stage, source), destination!.ended])
}

function migrateArguments(values: DemoValues, uri: string): string[] {
  const limit = (given: number): number => (values.slow && given === 0 ? SLOW_BYTES_PER_SECOND : given)
  return [
    'migrate',
    `--to=${uri}`,
    `--postcopy=${values.postcopy}`,
    `--after=${values.after}ms`,
    `--downtime-limit=${values['downtime-limit']}ms`,
    `--max-bandwidth=${limit(values['max-bandwidth'])}`,
    `--max-postcopy-bandwidth=${limit(values['max-postcopy-bandwidth'])}`,
    ...guestArguments(values),
  ]
}

function take(stage: Stage, message: SideMessage): void {
  if (message.type === 'source') stage.sourceView = message.view
  else if (message.type === 'destination') stage.destinationView = message.view
}

/** Waits for the end of a side. When it was a bad one, nobody waits for ever for the other. */
async function ended(stage: Stage, side: SideProcess): Promise<void> {
  const trouble = await side.ended
  // The first to fail is the news; the other one fails because of it.
  if (trouble !== undefined && !stage.interrupted && stage.troubles.length === 0) stage.troubles.push(trouble)
  if (trouble === undefined && side.report?.ok) return
  const other = side === stage.source ? stage.destination : stage.source
  if (!other?.alive) return
  const waits = other === stage.destination && stage.destinationView === undefined
  setTimeout(() => other.order({ order: 'interrupt' }), waits ? 0 : HELP_AFTER_MS).unref()
  setTimeout(() => other.kill(), KILL_AFTER_MS).unref()
}

/** The first ctrl-C lets both sides end in order; the next one ends them. */
function interrupt(stage: Stage): void {
  const sides = [stage.source, stage.destination].filter((side) => side !== undefined)
  if (stage.interrupted) {
    for (const side of sides) side.kill()
    return
  }
  stage.interrupted = true
  stage.display.say('Interrupted: both sides are asked to end. ctrl-C again ends them at once.')
  for (const side of sides) side.order({ order: 'interrupt' })
  for (const side of sides) setTimeout(() => side.kill(), KILL_AFTER_MS).unref()
}

function show({ values, display, sourceView, destinationView }: Stage): void {
  if (sourceView === undefined && destinationView === undefined) return
  display.show({
    title: `farfault demo: ${values.guest} guest, ${bytes(values.memory)} of RAM, postcopy ${values.postcopy}`,
    ...(sourceView === undefined ? {} : { source: sourceView }),
    ...(destinationView === undefined ? {} : { destination: destinationView }),
  })
}

function judge(stage: Stage): ExitCode {
  const { values, display, troubles, source, destination } = stage
  // A guest that cannot be is found by the side that should boot it, but it was this command line that asked for it.
  if (source?.usageError !== undefined) throw new UsageError(source.usageError)
  const report = demoReport(source?.report ?? null, destination?.report ?? null, [
    ...troubles,
    ...(stage.interrupted ? ['interrupted by ctrl-C'] : []),
  ])
  if (values.json) process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`)
  else for (const line of demoSummary(report)) display.say(line)
  if (stage.interrupted) return EXIT.interrupted
  return report.ok ? EXIT.ok : EXIT.failed
}
