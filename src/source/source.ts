// `migrate`: starts the source thread for a guest and follows it. Main thread; never blocks.

import { EventEmitter } from 'node:events'
import { type ErrorMessage, errorFromMessage, UsageError } from '../errors.js'
import { beforeExit } from '../exit-hook.js'
import type { GuestHandle } from '../guest/guest-handle.js'
import { createMachine } from '../machine.js'
import { parseUri } from '../os/channel.js'
import { createWake } from '../os/wake.js'
import { numberBlocks } from '../ram/block.js'
import { createStats, type Stats, statsBytes } from '../stats.js'
import { startThread } from '../thread.js'
import type { Order, OutgoingOptions } from './outgoing.js'
import { SOURCE_STATS, type SourceReport, type SourceStatus } from './report.js'
import type { SourceThreadData } from './source-thread.js'
import { SOURCE_STATUS } from './status.js'

/** The guests' own device sections have others. */
const LIVE_RAM_SECTION_ID = 1

export interface MigrateOptions {
  /** `tcp:HOST:PORT`, `unix:PATH` or `fd:N`. */
  readonly to: string
  /**
   * `now`: switch before anything is sent; `auto` (default): precopy, and the switch when it will not converge or when
   * `startPostcopy` is called; `never`: precopy only.
   */
  readonly postcopy?: 'now' | 'auto' | 'never'
  /** Precopy ends by itself when the rest can be sent within this time, ms. Default 25. */
  readonly downtimeLimitMs?: number
  /** Bytes a second; 0 (default) is no limit. Requested pages are never held back. */
  readonly maxBandwidth?: number
  readonly maxPostcopyBandwidth?: number
  /** How long the destination may take to make its RAM ready, ms. Default 10000. */
  readonly setupTimeoutMs?: number
}

export interface Migration extends EventEmitter<{ status: [SourceStatus] }> {
  readonly status: SourceStatus
  /** Counters, live. */
  readonly stats: Readonly<Stats<(typeof SOURCE_STATS)[number]>>
  /** Go over now, however far precopy has come. */
  startPostcopy(): void
  /** Before the switch: stop, and let the guest go on here. After it: no effect. */
  cancel(): void
  setBandwidth(limits: { precopy?: number; postcopy?: number }): void
  /**
   * Resolves when the migration has ended, well or not: look at `ok`. `error` in the report is a sentence for people;
   * `cause` is the typed error behind it.
   */
  readonly done: Promise<SourceReport & { readonly cause?: Error }>
}

/** Moves a running guest. It stays the caller's: stopped after a migration that went well, running after one that did not. */
export function migrate(guest: GuestHandle, options: MigrateOptions): Migration {
  parseUri(options.to)
  const statusCell = new Int32Array(new SharedArrayBuffer(4))
  const statsMemory = new SharedArrayBuffer(statsBytes(SOURCE_STATS))
  const wake = createWake()
  const data: SourceThreadData = {
    uri: options.to,
    options: threadOptions(guest, options),
    blocks: numberBlocks(guest.blocks),
    guest: guest.connect(),
    wakeFd: wake.fd,
    statusCell,
    statsMemory,
  }
  const url = new URL('./source-thread.js', import.meta.url)
  const worker = startThread(url, 'farfault source', data, [data.guest.port])
  const machine = createMachine('source', SOURCE_STATUS, statusCell, 0)
  const events = new EventEmitter<{ status: [SourceStatus] }>()

  const order = (message: Order): void => {
    worker.postMessage(message)
    wake.signal()
  }
  const forget = beforeExit(() => order({ order: 'cancel' }))

  const done = new Promise<SourceReport & { cause?: Error }>((resolve, reject) => {
    let result: (SourceReport & { cause?: Error }) | undefined
    worker.on('message', (m: { status?: SourceStatus; done?: SourceReport; error?: ErrorMessage }) => {
      if (m.status !== undefined) events.emit('status', m.status)
      if (m.done !== undefined) {
        result = m.error === undefined ? m.done : { ...m.done, cause: errorFromMessage(m.error) }
      }
    })
    worker.on('error', reject)
    worker.on('exit', () => {
      forget()
      wake.close()
      if (result === undefined) reject(new Error('the source thread ended without a report'))
      else resolve(result)
    })
  })

  return Object.defineProperties(events, {
    status: { get: () => machine.state },
    stats: { value: createStats(SOURCE_STATS, statsMemory) },
    startPostcopy: { value: () => order({ order: 'start-postcopy' }) },
    cancel: { value: () => order({ order: 'cancel' }) },
    setBandwidth: {
      value: (limits: { precopy?: number; postcopy?: number }) => order({ order: 'bandwidth', ...limits }),
    },
    done: { value: done },
  }) as Migration
}

function threadOptions(guest: GuestHandle, options: MigrateOptions): OutgoingOptions {
  const { postcopy = 'auto', downtimeLimitMs = 25, maxBandwidth = 0, maxPostcopyBandwidth = 0 } = options
  const { setupTimeoutMs = 10_000 } = options
  for (const [name, value] of Object.entries({
    downtimeLimitMs,
    maxBandwidth,
    maxPostcopyBandwidth,
    setupTimeoutMs,
  })) {
    if (!Number.isFinite(value) || value < 0)
      throw new UsageError(`${name} must be a number of at least 0, got ${value}`)
  }
  return {
    machine: guest.machine,
    ramSectionId: LIVE_RAM_SECTION_ID,
    postcopy,
    downtimeLimitMs,
    maxBandwidth,
    maxPostcopyBandwidth,
    setupTimeoutMs,
  }
}
