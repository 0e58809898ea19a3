// Can this host receive by postcopy, and track writes? An ordered list of checks, each with what it found and what to
// change. The required ones and their order follow QEMU's own check of its host when a postcopy is announced.
// Main thread or any other; leaves no trace.

import { HostUnsupportedError } from '../errors.js'
import { pageSize } from './mapping.js'
import { type Finding, missingFrom, NEWER_KERNEL } from './probe-finding.js'
import {
  checkHugePagePool,
  checkLockLimit,
  checkPagemapScan,
  checkTestArea,
  checkUnlock,
  checkWriteTracking,
} from './probe-kernel.js'
import { checkUserfaultfd } from './probe-rights.js'
import { openUserfaultfd, type Userfaultfd } from './userfaultfd.js'

export { pageSize } from './mapping.js'

export interface ProbeOptions {
  /** Bytes of a page on the wire. Default: the host's page size. */
  readonly targetPageSize?: number
  /** Page sizes of all RAM blocks, joined by OR, as POSTCOPY_ADVISE carries them. Default: the host's page size. */
  readonly pageSizeSummary?: number
  /** Names (idstr) of the RAM blocks that are mapped shared. */
  readonly sharedBlocks?: readonly string[]
}

export interface ProbeCheck extends Finding {
  /** Stable, for programs. */
  readonly id: string
  readonly title: string
  /** Whether a postcopy destination needs it. */
  readonly required: boolean
}

export interface ProbeReport {
  readonly checks: readonly ProbeCheck[]
  /** Every required check is ok. */
  readonly canReceive: boolean
}

interface ProbeContext {
  readonly options: Required<ProbeOptions>
  /** Undefined if it could not be opened: what needs it is not tried. */
  readonly userfaultfd: Userfaultfd | undefined
}

interface CheckRow {
  readonly id: string
  readonly title: string
  readonly required: boolean
  readonly needsUserfaultfd?: true
  run(context: ProbeContext): Finding
}

const CHECKS: readonly CheckRow[] = [
  { id: 'target-page', title: 'target page size', required: true, run: checkTargetPage },
  { id: 'userfaultfd', title: 'userfaultfd', required: true, run: () => checkUserfaultfd() },
  { id: 'ioctls', title: 'userfaultfd operations', required: true, needsUserfaultfd: true, run: checkIoctls },
  {
    id: 'huge-faults',
    title: 'faults on huge pages',
    required: true,
    needsUserfaultfd: true,
    run: checkHugeFaults,
  },
  { id: 'private-ram', title: 'private guest RAM', required: true, run: checkPrivateRam },
  { id: 'munlock', title: 'unlocking memory', required: true, run: checkUnlock },
  {
    id: 'test-area',
    title: 'a test page',
    required: true,
    needsUserfaultfd: true,
    run: (context) => checkTestArea(context.userfaultfd!),
  },
  { id: 'write-tracking', title: 'tracking of writes', required: false, run: checkWriteTracking },
  { id: 'pagemap-scan', title: 'scan of page states', required: false, run: checkPagemapScan },
  { id: 'lock-limit', title: 'limit of locked memory', required: false, run: checkLockLimit },
  {
    id: 'huge-pool',
    title: 'huge page pools',
    required: false,
    run: (context) => checkHugePagePool(context.options.pageSizeSummary),
  },
]

/** Never throws for what the host lacks, except HostUnsupportedError on a platform other than Linux. */
export function probeHost(options: ProbeOptions = {}): ProbeReport {
  const context: ProbeContext = { options: withDefaults(options), userfaultfd: tryOpen() }
  const checks = CHECKS.map((row) => runCheck(row, context))
  context.userfaultfd?.close()
  return { checks, canReceive: checks.every((check) => check.ok !== false || !check.required) }
}

/** @throws HostUnsupportedError with the first required check that fails. */
export function assertHostCanReceive(options: ProbeOptions = {}): void {
  const failed = probeHost(options).checks.find((check) => check.required && check.ok === false)
  if (failed === undefined) return
  const remedy = failed.remedy === undefined ? '' : `; ${failed.remedy}`
  throw new HostUnsupportedError(`this host cannot receive by postcopy: ${failed.detail}${remedy}`)
}

function withDefaults(options: ProbeOptions): Required<ProbeOptions> {
  return { targetPageSize: pageSize(), pageSizeSummary: pageSize(), sharedBlocks: [], ...options }
}

function tryOpen(): Userfaultfd | undefined {
  try {
    return openUserfaultfd({ features: [] })
  } catch (error) {
    if (error instanceof HostUnsupportedError) return undefined
    throw error
  }
}

function runCheck(row: CheckRow, context: ProbeContext): ProbeCheck {
  const { id, title, required } = row
  if (row.needsUserfaultfd && context.userfaultfd === undefined) {
    return { id, title, required, ok: false, detail: 'not tried: it needs a userfaultfd' }
  }
  return { id, title, required, ...row.run(context) }
}

function checkTargetPage({ options }: ProbeContext): Finding {
  const detail = `target page ${options.targetPageSize} bytes, host page ${pageSize()} bytes`
  if (options.targetPageSize <= pageSize()) return { ok: true, detail }
  return {
    ok: false,
    detail: `the target page is bigger than the host page: ${detail}`,
    remedy: 'receive on a host with pages at least as big',
  }
}

/** A kernel without these is no postcopy host; the ones on pages are asked of a test page. */
function checkIoctls({ userfaultfd }: ProbeContext): Finding {
  const missing = missingFrom(userfaultfd!.ioctls, ['REGISTER', 'UNREGISTER'])
  if (missing !== '') return { ok: false, detail: `userfaultfd lacks ${missing}`, remedy: NEWER_KERNEL }
  return { ok: true, detail: `features: ${[...userfaultfd!.features].join(', ') || 'none'}` }
}

function checkHugeFaults({ options, userfaultfd }: ProbeContext): Finding {
  const has = userfaultfd!.features.has('MISSING_HUGETLBFS')
  const detail = `userfaultfd on huge pages: ${has ? 'yes' : 'no'}`
  if (has) return { ok: true, detail }
  if (options.pageSizeSummary === pageSize())
    return { ok: 'warning', detail: `${detail} (this guest has none)` }
  return {
    ok: false,
    detail:
      'the guest has huge pages, and the userfaultfd of this kernel cannot wait on them (MISSING_HUGETLBFS)',
    remedy: 'use Linux 4.11 or newer, or ordinary pages on both hosts',
  }
}

function checkPrivateRam({ options }: ProbeContext): Finding {
  if (options.sharedBlocks.length === 0) return { ok: true, detail: 'no RAM block is shared' }
  return {
    ok: false,
    detail:
      `RAM shared with other processes cannot be received by postcopy (${options.sharedBlocks.join(', ')}): ` +
      'a page missing here would be read as zeros there',
    remedy: 'map the guest RAM privately',
  }
}
