// Saves a running QEMU's guest by QMP: looks whether it can be done, sets what has to be set, migrates, and puts everything
// back. Main thread. Nothing is stopped before all is known to be right; after a failure the guest goes on as it was.

import { setTimeout as sleep } from 'node:timers/promises'
import { GuestError } from '../errors.js'
import { type MigrationInfo, queryMigration, setMigrationCapabilities } from './migration.js'
import type { Qmp } from './qmp.js'

/** Capabilities with which the stream is not one that can be stored, and why. */
const REFUSED: Readonly<Record<string, string>> = {
  multifd: 'pages go over channels of their own',
  block: 'disks are sent with the RAM',
  'x-ignore-shared': 'RAM that is shared is left out',
  'x-colo': 'the stream never ends',
  'background-snapshot': 'the stream has another form',
  'dirty-bitmaps': 'bitmaps of disks are sent with the RAM',
}

/** Switched off for the time of the save: they want a destination that runs the guest, or somebody who confirms. */
const SWITCHED_OFF = [
  'postcopy-preempt',
  'postcopy-ram',
  'switchover-ack',
  'pause-before-switchover',
] as const

/** Bytes a second that no host reaches. */
export const UNLIMITED = 2 ** 44
const DOWNTIME_MS_MAX = 2_000_000
const POLL_MS = 20

export interface SaveOptions {
  /** Where to: as QMP's `migrate` takes it. */
  readonly uri: string
  /** To an image that QEMU writes itself, `file:` with mapped-ram (QEMU 9.0 and newer), instead of a peer that answers. */
  readonly mappedRam?: boolean
  /** The guest is stopped when the rest takes no longer, ms. After three passes the limit doubles with each. */
  readonly downtimeLimitMs: number
  readonly signal: AbortSignal
  readonly onProgress?: (info: MigrationInfo) => void
}

export interface SavedState {
  /** From the command to the end, ms. */
  readonly totalMs: number
  /** From the stop of the guest to the end, ms. */
  readonly downtimeMs: number
}

/** What QEMU is like, as far as it has to do with saving. */
export interface SaveSettings {
  /** Run state of the guest: `running`, `paused`, … */
  readonly runState: string
  readonly capabilities: Readonly<Record<string, boolean>>
  readonly parameters: Readonly<Record<string, unknown>>
}

/** @throws GuestError that says what is in the way; nothing has been changed then. */
export async function checkSaveable(
  qmp: Qmp,
  { mappedRam = false, tls = false } = {},
): Promise<SaveSettings> {
  const status = await runStateOf(qmp)
  if (status === 'postmigrate')
    throw new GuestError('this QEMU has been saved or migrated already: its guest has gone on elsewhere')
  if (status === 'inmigrate') throw new GuestError('this QEMU still waits for a guest that migrates to it')
  const migration = await queryMigration(qmp)
  const running = migration.status ?? 'none'
  if (!['none', 'completed', 'cancelled', 'failed'].includes(running))
    throw new GuestError(`this QEMU is migrating already (${running})`)
  const [blocked] = migration['blocked-reasons'] ?? []
  if (blocked !== undefined) throw new GuestError(`this guest cannot be saved: ${blocked}`)
  const listed = await qmp.execute<{ capability: string; state: boolean }[]>('query-migrate-capabilities')
  const capabilities = Object.fromEntries(listed.map(({ capability, state }) => [capability, state]))
  for (const [name, why] of Object.entries(REFUSED)) {
    if (capabilities[name] === true)
      throw new GuestError(
        `the migration capability "${name}" is on in this QEMU, and cannot be taken: ${why}. Switch it off`,
      )
  }
  if (mappedRam && capabilities['mapped-ram'] === undefined)
    throw new GuestError(`QEMU ${qmp.version.major}.${qmp.version.minor} cannot write images itself: 9.0 can`)
  const parameters = await qmp.execute<Record<string, unknown>>('query-migrate-parameters')
  const encrypts = typeof parameters['tls-creds'] === 'string' && parameters['tls-creds'] !== ''
  if (encrypts && !tls)
    throw new GuestError(
      'this QEMU encrypts its migrations (parameter tls-creds): park it with TLS on a tcp address, or clear that parameter',
    )
  if (tls && !encrypts)
    throw new GuestError(
      'this QEMU does not encrypt its migrations: give it an object tls-creds-x509 or tls-creds-psk (endpoint=client) and ' +
        'set the migration parameter tls-creds to its id',
    )
  return { runState: status, capabilities, parameters }
}

/** What has to be other than it is. */
function changes(settings: SaveSettings, { mappedRam = false, downtimeLimitMs }: SaveOptions) {
  const wanted: Record<string, boolean> = {
    ...Object.fromEntries(SWITCHED_OFF.map((name) => [name, false])),
    ...(mappedRam ? { 'return-path': false, 'mapped-ram': true, xbzrle: false } : { 'return-path': true }),
    ...(!mappedRam && settings.capabilities['mapped-ram'] === true ? { 'mapped-ram': false } : {}),
  }
  const capabilities = Object.entries(wanted).filter(
    ([name, state]) => settings.capabilities[name] !== undefined && settings.capabilities[name] !== state,
  )
  return {
    capabilities: Object.fromEntries(capabilities),
    parameters: { 'max-bandwidth': UNLIMITED, 'downtime-limit': downtimeLimitMs },
  }
}

/**
 * Migrates, and resolves when QEMU has nothing more to do; its guest is stopped then. On a rejection it goes on, unless QMP is lost.
 * Rejects with `GuestError` in QEMU's words, `QmpError`, `ChannelError` when QMP is lost, or the reason of `signal`.
 */
export async function saveGuest(qmp: Qmp, settings: SaveSettings, options: SaveOptions): Promise<SavedState> {
  const wanted = changes(settings, options)
  try {
    await apply(qmp, wanted.capabilities, wanted.parameters)
    return await migrateAndWait(qmp, options)
  } finally {
    await restore(qmp, settings, wanted)
  }
}

async function apply(
  qmp: Qmp,
  capabilities: Readonly<Record<string, boolean>>,
  parameters: Readonly<Record<string, unknown>>,
): Promise<void> {
  if (Object.keys(capabilities).length > 0) await setMigrationCapabilities(qmp, capabilities)
  await qmp.execute('migrate-set-parameters', parameters)
}

/** As it was before; the save itself is over, so that nothing of this can do it harm. */
async function restore(qmp: Qmp, settings: SaveSettings, changed: ReturnType<typeof changes>): Promise<void> {
  const before = <T>(names: object, from: Readonly<Record<string, T>>): Record<string, T> =>
    Object.fromEntries(Object.keys(names).map((name) => [name, from[name]!]))
  const { capabilities, parameters } = settings
  await apply(qmp, before(changed.capabilities, capabilities), before(changed.parameters, parameters)).catch(
    () => {},
  )
}

async function migrateAndWait(qmp: Qmp, options: SaveOptions): Promise<SavedState> {
  const { uri, signal, onProgress = () => {} } = options
  let stoppedMs: number | undefined
  const unlisten = qmp.on('STOP', () => {
    stoppedMs ??= performance.now()
  })
  const limit = raiseDowntimeLimit(qmp, options.downtimeLimitMs)
  const startMs = performance.now()
  let cancelled = false
  try {
    signal.throwIfAborted()
    await qmp.execute('migrate', { uri })
    for (;;) {
      const info = await queryMigration(qmp)
      onProgress(info)
      const { status = 'none' } = info
      const endMs = performance.now()
      if (status === 'completed')
        return { totalMs: endMs - startMs, downtimeMs: stoppedMs === undefined ? 0 : endMs - stoppedMs }
      if (status === 'failed' || status === 'cancelled') throw failure(info, signal)
      if (signal.aborted && !cancelled) {
        cancelled = true
        await qmp.execute('migrate_cancel')
      }
      await limit(info)
      await sleep(POLL_MS)
    }
  } finally {
    unlisten()
  }
}

function failure(info: MigrationInfo, signal: AbortSignal): unknown {
  if (signal.aborted) return signal.reason
  const why = info['error-desc'] ?? 'it gave no reason'
  return new GuestError(`QEMU could not save its guest: ${why}`)
}

/** A guest that writes faster than its RAM can be saved would never be done: it stands still for longer then. */
function raiseDowntimeLimit(qmp: Qmp, first: number): (info: MigrationInfo) => Promise<void> {
  let limitMs = first
  let passes = 3
  return async ({ ram }) => {
    const now = ram?.['dirty-sync-count'] ?? 0
    if (now <= passes || limitMs === DOWNTIME_MS_MAX) return
    passes = now
    limitMs = Math.min(Math.max(limitMs, 100) * 2, DOWNTIME_MS_MAX)
    await qmp.execute('migrate-set-parameters', { 'downtime-limit': limitMs })
  }
}

export async function runStateOf(qmp: Qmp): Promise<string> {
  return (await qmp.execute<{ status: string }>('query-status')).status
}

/** How long QEMU may take to start its guest again after a failure, ms. */
const RESTART_MS = 5000

/** After a failure: sees to it that the guest is in the state in which it was. Only when it is nowhere else. */
export async function goOn(qmp: Qmp, before: string): Promise<void> {
  const endMs = performance.now() + RESTART_MS
  for (let told = false; ; await sleep(POLL_MS)) {
    const now = await runStateOf(qmp)
    if (now === before) return
    if (now === 'postmigrate' && before === 'running' && !told) {
      told = true
      await qmp.execute('cont')
    }
    if (performance.now() > endMs) throw new GuestError(`the guest was "${before}", and is "${now}" now`)
  }
}
