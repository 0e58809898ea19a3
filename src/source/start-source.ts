// Starts a source thread and follows it. Main thread; never blocks.

import { EventEmitter } from 'node:events'
import type { TransferListItem } from 'node:worker_threads'
import { CancelledError, type ErrorMessage, errorFromMessage, UsageError } from '../errors.js'
import { beforeExit } from '../exit-hook.js'
import { createMachine } from '../machine.js'
import type { DemandRecord } from '../order/recorder.js'
import { parseUri } from '../os/channel.js'
import { createWake } from '../os/wake.js'
import { createStats, type Stats, statsBytes } from '../stats.js'
import { followThread, startThread } from '../thread.js'
import { assertTls, openTunnel, type TlsConnectOptions, type Tunnel } from '../tls/tunnel.js'
import type { Order, ReconnectAt } from './outgoing.js'
import { SOURCE_STATS, type SourceReport, type SourceStatus } from './report.js'
import type { SourceThreadBase } from './run-source.js'
import { SOURCE_STATUS } from './status.js'
import { hastenUrgentThread } from './urgent-thread.js'

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

/** A source thread that boots, and connects when it is told to: starting a thread takes longer than resuming a guest. */
export interface Source extends Migration {
  /** Resolves when the thread waits for the order to connect. Rejects with the reason when it has ended before. */
  readonly ready: Promise<void>
  /**
   * @param recover where to reconnect when the connection is lost after the switch; undefined: not at all
   * @param preempt as in the options, which said nothing final of it
   * @throws UsageError when that cannot be
   */
  connect(uri: string, recover?: ReconnectAt, preempt?: boolean): void
  /**
   * Instead of `connect`: another process was the source and died after the switch. The destination waits for one that has
   * the same RAM, and says what it has of it.
   * @throws UsageError when that cannot be
   */
  takeOver(recover: ReconnectAt): void
  /** In `postcopy-paused`, where it reconnects when told: the destination listens there. One attempt. */
  reconnect(uri: string): void
}

/** `thread`: the entry to start, which calls `runSource`; `data`: what it wants besides. */
export interface SourceSpec<T extends SourceThreadBase> {
  readonly thread: URL
  readonly data: Omit<T, 'wakeFd' | 'statusCell' | 'statsMemory'> & Pick<SourceThreadBase, 'options'>
  readonly transferList?: readonly TransferListItem[]
  /** Connect over TLS. */
  readonly tls?: TlsConnectOptions | undefined
  /** What the guest asked for, when that has settled; before `done`. */
  readonly onRecord?: (record: DemandRecord) => void
}

export function startSource<T extends SourceThreadBase>(spec: SourceSpec<T>): Source {
  const statusCell = new Int32Array(new SharedArrayBuffer(4))
  const statsMemory = new SharedArrayBuffer(statsBytes(SOURCE_STATS))
  const wake = createWake()
  const data = { ...spec.data, wakeFd: wake.fd, statusCell, statsMemory }
  const worker = startThread(spec.thread, 'farfault source', data, spec.transferList)
  const machine = createMachine('source', SOURCE_STATUS, statusCell, 0)
  const events = new EventEmitter<{ status: [SourceStatus] }>()

  const order = (message: Order): void => {
    worker.postMessage(message)
    wake.signal()
  }
  const forget = beforeExit(() => order({ order: 'cancel' }))

  let tunnel: Tunnel | undefined
  let recoverTunnel: Tunnel | undefined
  function connect(uri: string, recover?: ReconnectAt, preempt?: boolean): void {
    if (recover !== undefined) assertRecoverable(recover, spec.tls)
    if (spec.tls !== undefined) tunnel = openTunnel(uri, spec.tls)
    order({
      order: 'connect',
      uri: tunnel?.uri ?? uri,
      recover: recover === undefined ? undefined : throughTunnel(recover),
      preempt,
    })
  }

  function throughTunnel(recover: ReconnectAt): ReconnectAt {
    if (spec.tls === undefined || recover === 'when-told') return recover
    recoverTunnel = openTunnel(recover.uri, spec.tls)
    return { uri: recoverTunnel.uri }
  }

  function takeOver(recover: ReconnectAt): void {
    assertRecoverable(recover, spec.tls)
    order({ order: 'take-over', recover: throughTunnel(recover) })
  }

  let realTime = false
  /** Behind a tunnel the peer is this process. */
  async function hasten(peer: number): Promise<void> {
    if (tunnel === undefined) realTime = await hastenUrgentThread(peer)
  }

  let isReady = (): void => {}
  let isNotReady = (_: Error): void => {}
  const ready = new Promise<void>((resolve, reject) => {
    isReady = resolve
    isNotReady = reject
  })
  ready.catch(() => {}) // whoever does not wait for it learns it from the report
  let result: (SourceReport & { cause?: Error }) | undefined
  const ended = followThread<SourceThreadMessage>(worker, (m) => {
    if ('ready' in m) isReady()
    else if ('record' in m) spec.onRecord?.(m.record)
    else if ('urgentPeer' in m) void hasten(m.urgentPeer)
    else if ('status' in m) events.emit('status', m.status)
    else
      result =
        m.error === undefined ? m.done : failed(m.done, errorFromMessage(m.error), [recoverTunnel, tunnel])
  })
  const done = ended.then(async () => {
    forget()
    wake.close()
    if (result === undefined) throw new Error('the source thread ended without a report')
    await Promise.all([tunnel?.ended(), recoverTunnel?.ended()])
    return realTime ? { ...result, realTime } : result
  })
  done.then(({ cause }) => isNotReady(cause ?? new CancelledError()), isNotReady)

  return Object.defineProperties(events, {
    status: { get: () => machine.state() },
    stats: { value: createStats(SOURCE_STATS, statsMemory) },
    startPostcopy: { value: () => order({ order: 'start-postcopy' }) },
    cancel: { value: () => order({ order: 'cancel' }) },
    setBandwidth: {
      value: (limits: { precopy?: number; postcopy?: number }) => order({ order: 'bandwidth', ...limits }),
    },
    connect: { value: connect },
    takeOver: { value: takeOver },
    reconnect: { value: (uri: string) => order({ order: 'reconnect', uri }) },
    ready: { value: ready },
    done: { value: done },
  }) as Source
}

export type SourceThreadMessage =
  | { readonly ready: true }
  | { readonly status: SourceStatus }
  | { readonly record: DemandRecord }
  | { readonly urgentPeer: number }
  | { readonly done: SourceReport; readonly error?: ErrorMessage }

/** The report says what the thread saw, and what it means for the guest; of why its connection ended the tunnel knows more. */
function failed(
  report: SourceReport,
  seen: Error,
  /** The one of the last connection first. */
  tunnels: readonly (Tunnel | undefined)[],
): SourceReport & { readonly cause: Error } {
  const cause =
    tunnels.map((tunnel) => tunnel?.reasonFor(seen) ?? seen).find((reason) => reason !== seen) ?? seen
  const { error = '' } = report
  return { ...report, error: error.replace(seen.message, () => cause.message), cause }
}

/** What is wrong with it must not be found first when the guest depends on it. @throws UsageError */
export function assertRecoverable(recover: ReconnectAt, tls?: TlsConnectOptions): void {
  if (recover !== 'when-told') {
    if (tls === undefined) parseUri(recover.uri)
    else assertTls(recover.uri, tls)
  } else if (tls !== undefined) {
    throw new UsageError('a migration over TLS to where it is told later cannot be recovered yet')
  }
}
