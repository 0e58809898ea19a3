// Has a QEMU whose source is gone listen for it again (`migrate-recover`). Main thread.
//
// Out of band: QEMU's main loop may itself be waiting for a page.

import { ChannelError, GuestError } from '../errors.js'
import { queryMigration } from '../qemu/migration.js'
import { type Qmp, QmpError } from '../qemu/qmp.js'

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
 * For whoever has not seen the connection break: until QEMU listens, or says that it has all of its RAM. What it believes to
 * be its connection is ended.
 * @throws GuestError for a QEMU that no postcopy was under way to; ChannelError
 */
export async function listenOrComplete(qmp: Qmp, uri: string): Promise<'listens' | 'complete'> {
  const endMs = performance.now() + NOTICE_MS
  for (;;) {
    if (await listenAgain(qmp, uri)) return 'listens'
    const status = await statusOf(qmp)
    if (status === 'completed') return 'complete'
    if (status !== undefined && !status.startsWith('postcopy-'))
      throw new GuestError(
        `QEMU's migration is "${status}": the VM never ran there. End that QEMU, and resume the image anew`,
      )
    await qmp.execute('migrate-pause', {}, { oob: true }).catch(() => {}) // refused where there is nothing to end
    if (performance.now() > endMs)
      throw new ChannelError(`QEMU does not listen again: its migration is "${status ?? 'unknown'}"`)
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS))
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
