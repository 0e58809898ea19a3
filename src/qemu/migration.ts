// The migration commands of QMP, with types. Runs on the main thread.

import { ChannelError, GuestError } from '../errors.js'
import type { MigrationStatus, Qmp } from './qmp.js'

/** The parts of `query-migrate` that we read. Before any migration QEMU answers `{}`. */
export interface MigrationInfo {
  readonly status?: MigrationStatus
  readonly 'error-desc'?: string
  /** Why this guest cannot be migrated at all, in QEMU's words. */
  readonly 'blocked-reasons'?: readonly string[]
  readonly 'total-time'?: number
  /** Milliseconds; QEMU 10.0 counts on until the end of postcopy in some cases. */
  readonly downtime?: number
  readonly ram?: Readonly<Record<string, number>>
  /** Destination, with the capability `postcopy-blocktime`: milliseconds in which all vCPUs were blocked. */
  readonly 'postcopy-blocktime'?: number
  readonly 'postcopy-vcpu-blocktime'?: readonly number[]
}

/** Both ends need `postcopy-ram` before the migration; `events` makes QEMU send MIGRATION events. */
export async function setMigrationCapabilities(
  qmp: Qmp,
  capabilities: Readonly<Record<string, boolean>>,
): Promise<void> {
  const list = Object.entries(capabilities).map(([capability, state]) => ({ capability, state }))
  await qmp.execute('migrate-set-capabilities', { capabilities: list })
}

/** The migration capabilities that this QEMU knows. */
export async function knownCapabilities(qmp: Qmp): Promise<ReadonlySet<string>> {
  const list = await qmp.execute<{ capability: string }[]>('query-migrate-capabilities')
  return new Set(list.map(({ capability }) => capability))
}

export async function queryMigration(qmp: Qmp, options: { timeoutMs?: number } = {}): Promise<MigrationInfo> {
  return await qmp.execute<MigrationInfo>('query-migrate', {}, options)
}

const QUERY_PERIOD_MS = 20

/**
 * Wait until the migration of this QEMU has one of the states. It asks, rather than listens: a destination whose
 * guest is stalled, or a QEMU without the capability `events`, still answers.
 * Rejects with `GuestError` when the migration fails instead, `ChannelError` when the time is over.
 */
export async function waitForMigration(
  qmp: Qmp,
  states: readonly MigrationStatus[],
  { timeoutMs = 30_000 } = {},
): Promise<MigrationInfo> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const info = await queryMigration(qmp)
    const status = info.status ?? 'none'
    if (states.includes(status)) return info
    if (status === 'failed')
      throw new GuestError(`QEMU's migration failed: ${info['error-desc'] ?? 'no reason given'}`)
    if (performance.now() > deadline) {
      throw new ChannelError(
        `migration is still "${status}", not ${states.join(' or ')}, after ${timeoutMs} ms`,
      )
    }
    await new Promise((resolve) => setTimeout(resolve, QUERY_PERIOD_MS))
  }
}
