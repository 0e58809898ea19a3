// The summaries at the end of a command, for people. Pure.

import type { DemoReport, SideReport } from './reports.js'
import { bytes, counted, microseconds, milliseconds, number } from './text.js'

const LABEL_WIDTH = 18
const row = (label: string, text: string): string => `  ${label.padEnd(LABEL_WIDTH)}${text}`

/** Letters shown on each side of the switch. */
const LETTERS = 12

type Common = Pick<
  SideReport,
  'mode' | 'switchReason' | 'passes' | 'downtimeMs' | 'totalMs' | 'pages' | 'bytes' | 'faultLatencyUs'
> &
  Pick<SideReport, 'faults' | 'blocktimeMs' | 'ramCheck'>

export function demoSummary(report: DemoReport): string[] {
  return report.source?.ok && report.destination !== null ? wentOver(report) : stayed(report)
}

function wentOver(report: DemoReport): string[] {
  const { source, destination, continuity, problems } = report
  return [
    '',
    ...commonRows(report),
    row('guest', `${continuity.detail}${letters(source, destination)}`),
    ramRow(report),
    '',
    ...problems.map((problem) => `  WRONG: ${problem}`),
    report.ok
      ? '  The guest went over while it ran: its output has no gap and no repeat, and all its RAM is right.'
      : '  The demo failed.',
  ]
}

function stayed(report: DemoReport): string[] {
  const { source, problems } = report
  return [
    '',
    ...problems.map((problem) => `  ${problem}`),
    ...(source?.guest.here ? ['', row('guest', 'it ran on at the source'), ramRow(report)] : []),
    '',
    source?.guest.here ? '  The guest did not go over, and was not lost.' : '  The demo failed.',
  ]
}

export function receiveSummary(report: SideReport): string[] {
  if (!report.ok && report.ramCheck === null) return ['', `  failed: ${report.error}`]
  const { guest } = report
  return [
    '',
    ...commonRows(report),
    row(
      'guest',
      `${guest.machine}, ${bytes(guest.memoryBytes)}, at ${number(guest.progress)} ${unitOf(guest.machine)}`,
    ),
    ramRow(report),
    ...(report.ok ? [] : [`  failed: ${report.error}`]),
  ]
}

export function migrateSummary(report: SideReport): string[] {
  const { guest, ramCheck } = report
  const at = `${number(guest.progress)} ${unitOf(guest.machine)}`
  if (report.ok) return ['', ...commonRows(report), row('guest', `went over at ${at}`)]
  if (!guest.here) return ['', `  failed: ${report.error}`]
  // Why it stayed has been said when it happened.
  return [
    '',
    row('guest', `ran on, and was stopped here at ${at}`),
    ...(ramCheck === null ? [] : [ramRow(report)]),
  ]
}

function commonRows(report: Common): string[] {
  const { downtimeMs, totalMs, pages, faults, faultLatencyUs, blocktimeMs } = report
  const latency =
    faultLatencyUs === null || faults === 0
      ? ''
      : `, latency p50 ${microseconds(faultLatencyUs.p50)}, p99 ${microseconds(faultLatencyUs.p99)}, ` +
        `max ${microseconds(faultLatencyUs.max)}`
  return [
    ...(report.mode === null ? [] : [row('went over by', wayOver(report))]),
    row(
      'downtime',
      downtimeMs === null ? 'not known: the source did not say when it stopped' : milliseconds(downtimeMs),
    ),
    row('complete after', `${milliseconds(totalMs)}, ${bytes(report.bytes)}`),
    row(
      'pages',
      `${number(pages.normal)} normal, ${number(pages.zero)} zero; ${number(pages.requested)} on request`,
    ),
    // The source hears of requests; faults and how long they took are the destination's to count.
    blocktimeMs === null
      ? row('page requests', number(faults))
      : row('faults', `${number(faults)}${latency}`),
    ...(blocktimeMs === null ? [] : [row('blocktime', milliseconds(blocktimeMs))]),
  ]
}

const REASON = {
  ordered: 'ordered',
  'at once': 'at once, before any RAM was sent',
  'precopy diverges': 'because precopy would not have converged',
} as const

function wayOver({ mode, switchReason, passes }: Common): string {
  const after =
    passes === null || passes === 0 ? '' : ` after ${counted(passes, 'pass').replace('passs', 'passes')}`
  const reason = switchReason === null ? '' : ` (${REASON[switchReason!]})`
  return `${mode}${after}${reason}`
}

function ramRow({ ramCheck }: Common): string {
  if (ramCheck === null) return row('RAM check', 'none: nothing is known of what it must hold')
  return row('RAM check', `${ramCheck.ok ? 'right' : 'WRONG'}: ${ramCheck.detail}`)
}

const unitOf = (machine: string): string => (machine === 'farfault-v86' ? 'passes' : 'steps')

function letters(source: SideReport | null, destination: SideReport | null): string {
  if (source?.guest.machine !== 'farfault-v86' || destination === null) return ''
  const before = source.guest.printed.tail.slice(-LETTERS)
  return `  …${before}|${destination.guest.printed.head.slice(0, LETTERS)}…`
}
