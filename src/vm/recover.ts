// `resume --recover`: the process that served a VM's RAM is gone, and another one goes on from the same image. Main thread.
//
// All that it needs is the image and what QEMU says that it has of it. The VM's guest runs meanwhile, as far as it comes
// without absent pages.

import { rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ChannelError } from '../errors.js'
import type { DemandReport } from '../image/demand.js'
import { type ServedImage, type ServeOptions, serveImage } from '../image/serve.js'
import { connectQmp, type Qmp } from '../qemu/qmp.js'
import type { SourceReport } from '../source/report.js'
import type { Source } from '../source/start-source.js'
import { outcomeOf, pausedOrComplete, reconnectWhenPaused } from './listen-again.js'
import { assertSameImage, isAlive, readRecord, type ServingRecord } from './record.js'

export interface RecoverOptions extends Omit<ServeOptions, 'mapped' | 'preempt' | 'setupTimeoutMs' | 'tls'> {
  /** QMP socket of the QEMU, in the private directory that `resume` made for it: `qemu.qmpPath`. */
  readonly qmp: string
}

export interface Recovered {
  readonly source: Source
  /** Of QEMU. */
  readonly pid: number
  /** From the first word to QEMU until it went on, ms. */
  readonly recoveredMs: number
  /** Resolves when QEMU has ended. */
  readonly ended: Promise<void>
  /** What the VM asks for: so far, or in all when `done` has resolved. */
  demand(): DemandReport
  /** All RAM is in. Look at `ok`. */
  readonly done: Promise<SourceReport & { readonly cause?: Error }>
}

/** How long QEMU may take to greet, ms: another client keeps the socket for as long as it lives. */
const GREETING_MS = 5000
/** From the end of its QMP to the end of its process, ms. */
const QEMU_EXIT_MS = 10_000

/**
 * Resolves when QEMU asks for pages again; with undefined when it has all of its RAM, so that nothing is left to do.
 * @throws UsageError for another image than the one that the VM was resumed from, ImageError; ChannelError when QEMU cannot be
 * reached, GuestError when there is nothing to recover. The VM is left as it was: this can be tried again.
 */
export async function recover(imagePath: string, options: RecoverOptions): Promise<Recovered | undefined> {
  const directory = dirname(options.qmp)
  const record = readRecord(directory)
  const served = serveImage(imagePath, { ...options, preempt: record.preempt })
  let qmp: Qmp | undefined
  try {
    assertSameImage(record, imagePath, served.identity)
    qmp = await connectTo(options.qmp)
    await served.source.ready
    return await goOn(record, directory, qmp, served, options.push ?? true)
  } catch (error) {
    served.source.cancel()
    await qmp?.close()
    throw error
  }
}

async function goOn(
  record: ServingRecord,
  directory: string,
  qmp: Qmp,
  { source, demand }: ServedImage,
  push: boolean,
): Promise<Recovered | undefined> {
  const startMs = performance.now()
  if ((await pausedOrComplete(qmp, directory)) === 'complete') {
    source.cancel()
    await qmp.close()
    return undefined
  }
  const ended = qmp.closed.then(() => removeRemnants(record, directory))
  reconnectWhenPaused(qmp, source, directory)
  source.takeOver('when-told')
  void ended.then(source.cancel)
  await untilServing(source)
  return {
    source,
    demand,
    pid: record.pid,
    ended,
    recoveredMs: performance.now() - startMs,
    done: outcomeOf(source, push),
  }
}

async function connectTo(path: string): Promise<Qmp> {
  try {
    return await connectQmp(path, { timeoutMs: GREETING_MS })
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
    throw new ChannelError(
      `${error.message}. Either that QEMU has ended, or somebody else is connected to ${path}: the process that serves its RAM may still be there`,
      { cause: error },
    )
  }
}

function untilServing(source: Source): Promise<void> {
  return new Promise((resolve, reject) => {
    source.on('status', (status) => {
      if (status === 'postcopy-active' || status === 'completed') resolve()
    })
    source.done.then(({ ok, error, cause }) => {
      if (!ok) reject(cause ?? new ChannelError(error ?? 'the source failed'))
    }, reject)
  })
}

/** Who started that QEMU can no longer remove its directory. It may take a moment to end, or only have lost its QMP client. */
async function removeRemnants({ pid }: ServingRecord, directory: string): Promise<void> {
  for (const endMs = performance.now() + QEMU_EXIT_MS; isAlive(pid); await sleep(20))
    if (performance.now() > endMs) return
  rmSync(directory, { recursive: true, force: true })
}
