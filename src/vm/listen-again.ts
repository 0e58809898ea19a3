// Has a QEMU whose source is gone listen for it again (`migrate-recover`). Main thread.
//
// Out of band: QEMU's main loop may itself be waiting for a page.

import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CancelledError, ChannelError, GuestError } from '../errors.js'
import { queryMigration } from '../qemu/migration.js'
import { type Qmp, QmpError } from '../qemu/qmp.js'
import type { SourceReport } from '../source/report.js'
import type { Source } from '../source/start-source.js'

/** QEMU refuses while it does not know of the loss: time between two attempts, and how long it may take to know, ms. */
const AGAIN_MS = 50
const NOTICE_MS = 10_000
/** An answer in band may never come. */
const QUERY_MS = 1000

/** True when QEMU listens at `uri`, also where it did already; false when it refuses. @throws ChannelError without an answer */
export async function listenAgain(qmp: Qmp, uri: string): Promise<boolean> {
  try {
    await qmp.execute('migrate-recover', { uri }, { oob: true })
    return true
  } catch (error) {
    if (error instanceof QmpError) return false
    throw error
  }
}

/**
 * Whenever the source has lost its connection, QEMU listens, and then the source is told to connect; never the other way
 * round, because QEMU drops who is there when it is told to listen. Each time at a new address in its private directory.
 */
export function reconnectWhenPaused(qmp: Qmp, source: Source, directory: string): void {
  let listened = 0
  source.on('status', async (status) => {
    if (status !== 'postcopy-paused') return
    const uri = `unix:${join(directory, `recover-${process.pid}-${++listened}`)}`
    try {
      // It may notice the loss later than the source does.
      while (!(await listenAgain(qmp, uri)) && source.status === 'postcopy-paused') await sleep(AGAIN_MS)
      source.reconnect(uri)
    } catch {
      source.cancel() // there is no QEMU any more
    }
  })
}

type Done = SourceReport & { readonly cause?: Error }

/**
 * How it ended. Pages that go on demand alone have no other end than the VM's: a source that was given up because there is no
 * QEMU any more has done all that it could.
 */
export async function outcomeOf(source: Source, push: boolean): Promise<Done> {
  const report = await source.done
  if (push || !(report.cause instanceof CancelledError)) return report
  const { error: _, cause: __, ...rest } = report
  return { ...rest, ok: true, status: 'completed' }
}

/**
 * For whoever has not seen the connection break: until QEMU would listen, or says that it has all of its RAM. What it believes
 * to be its connection is ended.
 * @throws GuestError for a QEMU that no postcopy was under way to; ChannelError
 */
export async function pausedOrComplete(qmp: Qmp, directory: string): Promise<'paused' | 'complete'> {
  const endMs = performance.now() + NOTICE_MS
  for (;;) {
    if (await listenAgain(qmp, `unix:${join(directory, 'recover')}`)) return 'paused'
    const status = await statusOf(qmp)
    if (status === 'completed') return 'complete'
    if (status !== undefined && !status.startsWith('postcopy-'))
      throw new GuestError(
        `QEMU's migration is "${status}": the VM never ran there. End that QEMU, and resume the image anew`,
      )
    await qmp.execute('migrate-pause', {}, { oob: true }).catch(() => {}) // refused where there is nothing to end
    if (performance.now() > endMs)
      throw new ChannelError(`QEMU does not listen again: its migration is "${status ?? 'unknown'}"`)
    await sleep(AGAIN_MS)
  }
}

async function statusOf(qmp: Qmp): Promise<string | undefined> {
  try {
    return (await queryMigration(qmp, { timeoutMs: QUERY_MS })).status ?? 'none'
  } catch (error) {
    if (error instanceof ChannelError) return undefined
    throw error
  }
}
