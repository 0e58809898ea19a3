// `park`: a running QEMU's whole state goes into an image, and the VM stops. Main thread.
//
// QEMU is told by QMP to migrate to us; it runs its guest while RAM is sent, and stops it for the rest. When the image is on
// disk QEMU hears so and is done. Or QEMU writes the image itself (`native`), and here it gets checksums and its name.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { resolve as absolute, join } from 'node:path'
import { CancelledError, ChannelError, type FarfaultError, GuestError, messageOf } from '../errors.js'
import { adoptImage } from '../image/adopt.js'
import { type Parking, parkFrom } from '../image/park.js'
import type { ParkReport } from '../image/park-report.js'
import { removeImage } from '../image/publish.js'
import type { WrittenImage } from '../image/writer.js'
import type { MigrationInfo } from '../qemu/migration.js'
import { connectQmp, type Qmp } from '../qemu/qmp.js'
import { checkSaveable, goOn, type SavedState, type SaveSettings, saveGuest } from '../qemu/save.js'
import type { TlsListenOptions } from '../tls/tunnel.js'

export interface ParkVmOptions {
  /** Path of the QMP socket of the running QEMU. */
  readonly qmp: string
  /** Of the image. */
  readonly path: string
  /** Take the place of a file of that name. */
  readonly replace?: boolean
  /** QEMU writes the image itself: 9.0 and newer, and it must see the same file system. */
  readonly native?: boolean
  /** Where QEMU connects to; unless given a unix socket in a directory of our own. */
  readonly listen?: string
  /** The guest is stopped when the rest takes no longer, ms. Default 1000. */
  readonly downtimeLimitMs?: number
  /** End that QEMU when its state is in the image. Default: it stays, stopped. */
  readonly quit?: boolean
  /** Program and version, for the sidecar. */
  readonly by?: string
  /** With `listen`: TLS between that QEMU, whose migration parameter `tls-creds` must be set, and us. */
  readonly tls?: TlsListenOptions
  /** Without TLS: `listen` may be an address that other hosts can reach. */
  readonly insecure?: boolean
  /** Give up: the guest goes on, and nothing is left on disk. */
  readonly signal?: AbortSignal
  readonly onProgress?: (progress: ParkProgress) => void
}

export interface ParkProgress {
  /** Bytes of RAM that QEMU has still to save, as far as it knows. */
  readonly remainingBytes: number
  readonly totalBytes: number
  /** Sent so far. */
  readonly sentBytes: number
  readonly passes: number
  /** Written by the guest, bytes a second; 0 before the second pass. */
  readonly dirtyBytesPerSecond: number
  /** The guest is stopped, and QEMU waits for the image. */
  readonly storing: boolean
}

export interface ParkedVm extends ParkReport {
  /** From the stop of the guest until QEMU was done, ms. */
  readonly downtimeMs: number
  /** Version of the QEMU. */
  readonly qemu: string
  /** It has been ended. */
  readonly quit: boolean
}

/**
 * Resolves when the image is on disk and QEMU is done. On any rejection the guest goes on where it is.
 * Rejects with `UsageError` for a QEMU or a path with which it cannot be done, before anything is changed; then with the
 * cause: `SystemError` of the disk, `GuestError` in QEMU's words, `CancelledError`, …
 */
export async function park(options: ParkVmOptions): Promise<ParkedVm> {
  const qmp = await connectQmp(options.qmp)
  try {
    const settings = await checkSaveable(qmp, {
      mappedRam: options.native === true,
      tls: options.tls !== undefined,
    })
    const { major, minor, micro } = qmp.version
    const version = `${major}.${minor}.${micro}`
    const work = options.native === true ? parkNative : parkByStream
    const { report, saved } = await work(qmp, settings, options, version)
    if (options.quit === true) await quit(qmp)
    return {
      ...report,
      durationMs: saved.totalMs,
      downtimeMs: saved.downtimeMs,
      qemu: version,
      quit: options.quit === true,
    }
  } finally {
    await qmp.close()
  }
}

interface Outcome {
  readonly report: ParkReport
  readonly saved: SavedState
}

async function parkByStream(
  qmp: Qmp,
  settings: SaveSettings,
  options: ParkVmOptions,
  qemu: string,
): Promise<Outcome> {
  const { path, replace = false, by = 'farfault', onProgress } = options
  const directory = mkdtempSync(join(tmpdir(), 'farfault-park-'))
  const ours = new AbortController()
  const unfollow = follow(options.signal, ours)
  let parking: Parking | undefined
  try {
    const listen = options.listen ?? `unix:${join(directory, 'migration')}`
    parking = parkFrom({ listen, path, replace, by, qemu, ...security(options) })
    const { uri, ready, done, stats } = parking
    // When it fails here QEMU has been told, or is told now.
    const ended = done.then((report) => {
      if (!report.ok) ours.abort(report.cause)
      return report
    })
    ended.catch(() => {}) // looked at below, unless QEMU fails first
    await ready // the guest would run or stand still for nothing meanwhile
    const saved = await saveGuest(qmp, settings, {
      uri,
      downtimeLimitMs: options.downtimeLimitMs ?? 1000,
      signal: ours.signal,
      onProgress: (info) => onProgress?.(progressOf(info, stats.storingAtUs !== 0)),
    })
    const report = await ended
    if (!report.ok) throw report.cause
    return { report, saved }
  } catch (error) {
    throw await giveUp(error, qmp, settings, parking, path)
  } finally {
    unfollow()
    rmSync(directory, { recursive: true, force: true })
  }
}

const security = ({ tls, insecure }: ParkVmOptions) => ({
  ...(tls === undefined ? {} : { tls }),
  ...(insecure === undefined ? {} : { insecure }),
})

/** QEMU keeps its guest: an image, if there is one already, would be a second place where it lives. Answers the cause. */
async function giveUp(
  error: unknown,
  qmp: Qmp,
  { runState }: SaveSettings,
  parking: Parking | undefined,
  path: string,
): Promise<unknown> {
  if (parking === undefined) return error
  parking.cancel()
  const report = await parking.done
  if (report.ok && !(error instanceof GuestError || error instanceof CancelledError)) {
    // The last word of QEMU is missing: it had all it wanted, so the image is what must not be lost.
    const what = messageOf(error)
    return new ChannelError(
      `${path} is whole, but whether QEMU has let go of its guest is not known: ${what}`,
    )
  }
  if (report.ok) removeImage(path)
  const cause = report.ok || report.cause instanceof CancelledError ? error : report.cause
  return goOn(qmp, runState).then(
    () => cause,
    (other) => (other instanceof GuestError ? other : cause),
  )
}

async function parkNative(
  qmp: Qmp,
  settings: SaveSettings,
  options: ParkVmOptions,
  qemu: string,
): Promise<Outcome> {
  const { replace = false, by = 'farfault', onProgress, downtimeLimitMs = 1000 } = options
  const adoption = adoptImage(absolute(options.path), { replace })
  const ours = new AbortController()
  const unfollow = follow(options.signal, ours)
  const startMs = performance.now()
  try {
    const saved = await saveGuest(qmp, settings, {
      uri: `file:${adoption.partial}`,
      mappedRam: true,
      downtimeLimitMs,
      signal: ours.signal,
      onProgress: (info) => onProgress?.(progressOf(info, false)),
    })
    const image = await adoption.finish({ how: 'park', by, from: null }, qemu)
    const totalMs = performance.now() - startMs
    return {
      report: reportOf(image, totalMs),
      saved: { totalMs, downtimeMs: saved.downtimeMs + totalMs - saved.totalMs },
    }
  } catch (error) {
    adoption.abort()
    // QEMU may have let go of its guest already: then it is told to go on.
    await goOn(qmp, settings.runState).catch(() => {})
    throw error
  } finally {
    unfollow()
  }
}

function reportOf(image: WrittenImage, durationMs: number): ParkReport {
  const { machine, memoryBytes, fileBytes, diskBytes, presentPages } = image
  return {
    ok: true,
    machine,
    mode: 'precopy',
    memoryBytes,
    bytes: presentPages * 4096,
    fileBytes,
    diskBytes,
    pages: { normal: presentPages, zero: memoryBytes / 4096 - presentPages },
    returnPath: false,
    durationMs,
  }
}

function follow(signal: AbortSignal | undefined, into: AbortController): () => void {
  if (signal === undefined) return () => {}
  const abort = (): void => into.abort(reasonOf(signal))
  if (signal.aborted) abort()
  signal.addEventListener('abort', abort)
  return () => signal.removeEventListener('abort', abort)
}

/** What the caller gave, unless it is Node's own `AbortError`. */
function reasonOf({ reason }: AbortSignal): FarfaultError {
  return reason instanceof Error && 'code' in reason && typeof reason.code === 'string'
    ? (reason as FarfaultError)
    : new CancelledError('parking was cancelled')
}

function progressOf({ ram = {} }: MigrationInfo, storing: boolean): ParkProgress {
  const pageBytes = ram['page-size'] ?? 4096
  return {
    remainingBytes: ram.remaining ?? 0,
    totalBytes: ram.total ?? 0,
    sentBytes: ram.transferred ?? 0,
    passes: ram['dirty-sync-count'] ?? 0,
    dirtyBytesPerSecond: (ram['dirty-pages-rate'] ?? 0) * pageBytes,
    storing,
  }
}

/** Its QMP connection ends before the answer has come, sometimes. */
async function quit(qmp: Qmp): Promise<void> {
  await qmp.execute('quit').catch(() => {})
  await qmp.closed
}
