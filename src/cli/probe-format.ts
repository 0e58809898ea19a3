// The host probe's result as text for people and as JSON for programs. Pure.

import type { ProbeCheck, ProbeReport } from '../index.js'

/** One line a check, its remedy below it, and a verdict. Ends without a newline. */
export function formatProbeText(report: ProbeReport): string {
  const width = Math.max(...report.checks.map((check) => check.title.length))
  const lines = report.checks.flatMap((check) => checkLines(check, width))
  return [...lines, '', verdict(report)].join('\n')
}

function checkLines(check: ProbeCheck, width: number): string[] {
  const line = `${mark(check)}  ${check.title.padEnd(width)}  ${check.detail}`
  return check.remedy === undefined ? [line] : [line, `${' '.repeat(8 + width)}to change it: ${check.remedy}`]
}

function mark(check: ProbeCheck): string {
  if (check.ok === true) return 'ok  '
  return check.ok === false && check.required ? 'FAIL' : 'warn'
}

function verdict(report: ProbeReport): string {
  if (!report.canReceive) return 'This host cannot receive a guest by postcopy.'
  const source = report.checks.find((check) => check.id === 'write-tracking')
  return source?.ok === true
    ? 'This host can receive a guest by postcopy, and be the source of a live migration.'
    : 'This host can receive a guest by postcopy; it cannot be the source of a live migration of an embedded guest.'
}

export function formatProbeJson(report: ProbeReport): string {
  return JSON.stringify(report, undefined, 2)
}
