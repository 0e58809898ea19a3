// `farfault replay`: what each order of pages would cost a recorded guest. Main thread.

import { type ReplayReport, replayTrace } from '../index.js'
import type { REPLAY_OPTIONS } from './commands.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Operands, Values } from './options.js'
import { bytes, counted, milliseconds, number, table } from './text.js'

export async function replayCommand(values: Values<typeof REPLAY_OPTIONS> & Operands): Promise<ExitCode> {
  const { bandwidth, 'working-set': workingSet } = values
  const report = replayTrace(values.operands[0]!, {
    ...(bandwidth === undefined ? {} : { bandwidth }),
    ...(workingSet === undefined ? {} : { workingSet }),
    roundTripMs: values['round-trip'],
    aheadMs: values.ahead,
    ...(values['quiet-time'] === undefined ? {} : { quietMs: values['quiet-time'] }),
    patienceMs: values.patience,
    aroundPages: values['around-pages'],
  })
  const text = values.json ? JSON.stringify(report, undefined, 2) : describe(report).join('\n')
  process.stdout.write(`${text}\n`)
  return EXIT.ok
}

function describe(report: ReplayReport): string[] {
  const { file, pages, spanMs, recordedFaultUs, bandwidth, roundTripMs, orders, doubts } = report
  const rate = bandwidth === 0 ? 'no limit' : `${bytes(bandwidth)}/s`
  return [
    `${file}: ${counted(pages, 'page')} within ${milliseconds(spanMs)}; a fault took ${number(recordedFaultUs)} µs`,
    `  link: ${rate}, ${milliseconds(roundTripMs)} more for each fault`,
    ...doubts.map((doubt) => `  with care: ${doubt}`),
    '',
    ...table(
      ['order', 'faults', 'guest stands still', 'through after', 'all RAM in', 'sent'],
      orders.map(({ order, faults, stallMs, finishedMs, residentMs, bytes: sent }) => [
        order,
        number(faults),
        milliseconds(stallMs),
        milliseconds(finishedMs),
        residentMs === undefined ? '-' : milliseconds(residentMs),
        bytes(sent),
      ]),
    ),
  ]
}
