// The reports of the commands for programs: what `--json` prints. Pure. The shapes are public.

import type { DestinationReport, GuestCheck, IncomingStatus, SourceReport, SourceStatus } from '../index.js'
import { type Continuity, checkContinuity, type PrintedText } from './serial.js'

/** The same fields on both sides; null is what a side cannot know. */
export interface SideReport {
  readonly ok: boolean
  readonly role: 'source' | 'destination'
  readonly status: SourceStatus | IncomingStatus
  /** A sentence, when `ok` is false. */
  readonly error: string | null
  readonly mode: SourceReport['mode'] | null
  readonly switchReason: SourceReport['switchReason'] | null
  /** Precopy passes. */
  readonly passes: number | null
  readonly downtimeMs: number | null
  /** From the connection to the end. */
  readonly totalMs: number
  readonly pages: { readonly normal: number; readonly zero: number; readonly requested: number }
  /** Page faults of the guest; at the source the requests for pages that came. */
  readonly faults: number
  readonly faultLatencyUs: { readonly p50: number; readonly p99: number; readonly max: number } | null
  readonly blocktimeMs: number | null
  readonly bytes: number
  /** Null when RAM was not checked: the guest is at the other side, or nothing is known of its contents. */
  readonly ramCheck: GuestCheck | null
  readonly guest: SideGuest
}

export interface SideGuest {
  readonly machine: string
  readonly memoryBytes: number
  /** It runs, or ran until it was checked, on this side. */
  readonly here: boolean
  readonly progress: number
  readonly printed: PrintedText
}

export function sourceSide(report: SourceReport, guest: SideGuest, ramCheck: GuestCheck | null): SideReport {
  const { ok, role, status, error, mode, switchReason, passes, downtimeMs, totalMs, requests, bytes } = report
  const { normal, zero, requested } = report.pages
  return {
    ok,
    role,
    status,
    error: error ?? null,
    mode,
    switchReason: switchReason ?? null,
    passes,
    downtimeMs: mode === 'none' ? null : downtimeMs,
    totalMs,
    pages: { normal, zero, requested },
    faults: requests,
    faultLatencyUs: null,
    blocktimeMs: null,
    bytes,
    ramCheck,
    guest,
  }
}

export function destinationSide(
  report: DestinationReport,
  guest: SideGuest,
  ramCheck: GuestCheck | null,
): SideReport {
  const { ok, role, status, error, downtimeMs, totalMs, postcopyMs, pages } = report
  const { faults, faultLatencyUs, blocktimeMs, bytes } = report
  const checked = ramCheck === null || ramCheck.ok
  return {
    ok: ok && checked,
    role,
    status,
    error: error ?? (checked ? null : `guest RAM is wrong: ${ramCheck.detail}`),
    mode: ok ? (postcopyMs > 0 ? 'postcopy' : 'precopy') : null,
    switchReason: null,
    passes: null,
    downtimeMs: downtimeMs ?? null,
    totalMs,
    pages,
    faults,
    faultLatencyUs,
    blocktimeMs,
    bytes,
    ramCheck,
    guest,
  }
}

export interface DemoReport extends Omit<SideReport, 'role' | 'status' | 'error' | 'guest'> {
  /** What is wrong, a sentence each; empty when `ok`. */
  readonly problems: readonly string[]
  /** The guest's output before and after the switch. */
  readonly continuity: Continuity
  readonly source: SideReport | null
  readonly destination: SideReport | null
}

const NO_PAGES = { normal: 0, zero: 0, requested: 0 } as const

/** @param troubles what the coordinator itself saw go wrong */
export function demoReport(
  source: SideReport | null,
  destination: SideReport | null,
  troubles: readonly string[],
): DemoReport {
  const continuity = joined(source, destination)
  const ramCheck = destination?.ramCheck ?? source?.ramCheck ?? null
  const problems = [...troubles]
  for (const side of [source, destination])
    if (side?.ok === false) problems.push(`${side.role}: ${side.error}`)
  for (const [name, side] of Object.entries({ source, destination })) {
    if (side === null && problems.length === 0) problems.push(`the ${name} has not reported`)
  }
  // Only a guest that is said to have gone over can have gone over wrong.
  if (problems.length === 0 && !continuity.ok) problems.push(`output: ${continuity.detail}`)
  if (problems.length === 0 && ramCheck === null) problems.push('guest RAM was not checked')
  return {
    ok: problems.length === 0,
    problems,
    mode: source?.mode ?? null,
    switchReason: source?.switchReason ?? null,
    passes: source?.passes ?? null,
    // One host, one clock: from the stop at the source to the first instruction at the destination.
    downtimeMs: destination?.downtimeMs ?? null,
    totalMs: source?.totalMs ?? destination?.totalMs ?? 0,
    pages: source?.pages ?? destination?.pages ?? NO_PAGES,
    faults: destination?.faults ?? 0,
    faultLatencyUs: destination?.faultLatencyUs ?? null,
    blocktimeMs: destination?.blocktimeMs ?? null,
    bytes: source?.bytes ?? destination?.bytes ?? 0,
    ramCheck,
    continuity,
    source,
    destination,
  }
}

function joined(source: SideReport | null, destination: SideReport | null): Continuity {
  if (!source?.ok || !destination?.ok) return { ok: false, detail: 'the guest did not go over' }
  return checkContinuity(source.guest, destination.guest)
}
