// One outgoing migration, from the connection to the destination's SHUT: what a source thread runs, whatever its RAM is.
// Blocks in poll and in nothing else; the main thread reaches it through its port and the wake descriptor.

import { parentPort, receiveMessageOnPort } from 'node:worker_threads'
import { CancelledError, ChannelError, errorToMessage, messageOf } from '../errors.js'
import type { Moment } from '../guest/guest-messages.js'
import { LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { createRecorder, type Recorder, type RecordLimits } from '../order/recorder.js'
import { connectTo, peerProcess, releaseChannel, roundTripUs, shutdownChannel } from '../os/channel.js'
import { monotonicUs } from '../os/clock.js'
import { runFirst } from '../os/scheduling.js'
import { type Wake, wakeFromFd } from '../os/wake.js'
import { createBitmap } from '../ram/bitmap.js'
import { blockOfPage, type RamBlock, totalPages } from '../ram/block.js'
import { createStats } from '../stats.js'
import { sayEnded } from '../thread.js'
import { trace } from '../trace.js'
import { LONG_ROUND_TRIP_US } from '../wire/urgent.js'
import type { Origin } from './origin.js'
import {
  createOutgoing,
  type Order,
  type Outgoing,
  type OutgoingOptions,
  PING,
  type ReconnectAt,
  sendPrefix,
  sentBytes,
} from './outgoing.js'
import { type PrecopyOutcome, runPrecopy } from './precopy.js'
import { pushRemaining, serveBehindTheEnd, serveOnDemand } from './push.js'
import { type Before, canRecover, type Reconnecting, recover } from './recover.js'
import { rehearse } from './rehearse.js'
import { SOURCE_STATS, type SourceReport } from './report.js'
import type { StallBudget } from './stall-budget.js'
import type { SourceThreadMessage } from './start-source.js'
import { SOURCE_STATUS } from './status.js'
import { completePrecopy, switchToPostcopy } from './switchover.js'
import { openUrgent } from './urgent.js'

/** What every source thread is started with. */
export interface SourceThreadBase {
  readonly options: OutgoingOptions
  readonly wakeFd: number
  readonly statusCell: Int32Array
  readonly statsMemory: SharedArrayBuffer
}

interface Progress {
  fd: number
  urgentFd: number | undefined
  startUs: number
  origin?: Origin
  outgoing?: Outgoing
  recorder?: Recorder
  outcome?: PrecopyOutcome
  stopped?: Moment
  /** The destination runs the guest, which another process handed over. */
  tookOver: boolean
}

const tell = (message: SourceThreadMessage): void => parentPort!.postMessage(message)

function takeOrders(): Order[] {
  const orders: Order[] = []
  for (let m = receiveMessageOnPort(parentPort!); m !== undefined; m = receiveMessageOnPort(parentPort!)) {
    orders.push(m.message as Order)
  }
  return orders
}

function waitForOrderToConnect(wake: Wake): Extract<Order, { order: 'connect' | 'take-over' }> {
  tell({ ready: true })
  for (;;) {
    wake.wait()
    for (const message of takeOrders()) {
      if (message.order === 'cancel') throw new CancelledError()
      if (message.order === 'connect' || message.order === 'take-over') return message
    }
  }
}

/** The destination's answer to the end of the stream. */
function untilShut({ link }: Outgoing): void {
  while (link.shut() === undefined) link.pumpPeer('to say that it has everything (SHUT)')
}

/** What a source thread serves. */
export interface Served {
  readonly origin: Origin
  readonly blocks: readonly RamBlock[]
  /** Pages that earlier runs asked for, as in `OutgoingParts`. */
  readonly recorded?: Uint32Array | undefined
  /** Note what is asked for. */
  readonly record?: RecordLimits | undefined
}

/**
 * Runs the migration and reports how it ended. `makeOrigin` is called once there is a connection: before that, nothing
 * here is touched.
 */
export function runSource(base: SourceThreadBase, makeOrigin: () => Served): void {
  let { options } = base
  const wake = wakeFromFd(base.wakeFd)
  const stats = createStats(SOURCE_STATS, base.statsMemory)
  const status = createMachine('source', SOURCE_STATUS, base.statusCell, 0, (from, event, to) => {
    trace('migrate_set_state', 'source', from, event, to)
    tell({ status: to })
  })
  const p: Progress = { fd: -1, urgentFd: undefined, startUs: 0, tookOver: false }

  function migrate(): void {
    status.step('migrate')
    rehearse(options)
    const order = waitForOrderToConnect(wake)
    if (options.realTime) runFirst(0)
    if (order.order === 'take-over') {
      takeOver(order.recover)
      return
    }
    if (order.preempt !== undefined) options = { ...options, preempt: order.preempt }
    begin(order.uri, order.recover)
  }

  function begin(uri: string, recoverAt: ReconnectAt | undefined): void {
    const how = { wakeFd: wake.fd, timeoutMs: LIMITS.connectMs }
    p.fd = connectTo(uri, how)
    p.startUs = monotonicUs()
    // Both at once: QEMU 7.2 answers nothing before it has the two of them.
    if (options.preempt) p.urgentFd = connectTo(uri, how)
    const parts = serve(recoverAt)
    const o = createOutgoing({ ...parts, fd: p.fd, urgentFd: p.urgentFd })
    p.outgoing = o
    const { urgent } = options
    const asks = urgent === 'where-slow' ? roundTripUs(p.fd) >= LONG_ROUND_TRIP_US : urgent
    sendPrefix(o, asks)
    if (asks) p.urgentFd = openUrgent(o, uri, wake.fd)
    status.step('ready')
    p.outcome = runPrecopy(o)
    if (p.outcome.finish === 'precopy') {
      p.stopped = completePrecopy(o)
      untilShut(o)
      status.step('precopyDone')
    } else {
      p.stopped = switchToPostcopy(o, p.outcome.reason)
      if (options.realTime) tellUrgentPeer()
      sendTheRest(parts, recoverAt)
    }
  }

  /** Who takes requested pages, if that is a process of this machine. */
  function tellUrgentPeer(): void {
    const urgentPeer = p.urgentFd === undefined ? undefined : peerProcess(p.urgentFd)
    if (urgentPeer !== undefined) tell({ urgentPeer })
  }

  function takeOver(recoverAt: ReconnectAt): void {
    p.tookOver = true
    p.startUs = monotonicUs()
    const parts = serve(recoverAt)
    const populated = parts.blocks.map(({ pages }) => createBitmap(pages))
    parts.origin.begin(populated)
    status.step('takeOver')
    reconnect(parts, recoverAt, { bytes: 0, pongs: new Map(), populated })
    sendTheRest(parts, recoverAt)
  }

  /** Makes the origin, which is there from then on. */
  function serve(recoverAt: ReconnectAt | undefined): Reconnecting {
    const { origin, blocks, recorded, record } = makeOrigin()
    p.origin = origin
    if (record !== undefined) p.recorder = recorderFor(p, blocks, record, recorded)
    const silenceMs =
      options.silenceTimeoutMs ?? (recoverAt === undefined ? LIMITS.silenceMs : LIMITS.silenceRecoverMs)
    return {
      ...{ wake, options, status, stats, takeOrders },
      ...{ blocks, origin, silenceMs, recorded, recorder: p.recorder },
    }
  }

  /** All of RAM, and the answer to its end; over as many connections as it takes. */
  function sendTheRest(parts: Reconnecting, recoverAt: ReconnectAt | undefined): void {
    for (;;) {
      const o = p.outgoing!
      try {
        if (options.push.on) {
          pushRemaining(o)
          serveBehindTheEnd(o)
          untilShut(o)
        } else {
          serveOnDemand(o, recoverAt !== undefined)
        }
        status.step('allSent')
        return
      } catch (error) {
        if (recoverAt === undefined || !canRecover(o, error)) throw error
        // If they are half dead, the destination is to know.
        for (const fd of [p.fd, p.urgentFd ?? -1]) if (fd >= 0) shutdownChannel(fd)
        status.step('channelLost')
        reconnect(parts, recoverAt, { bytes: sentBytes(o), pongs: o.pongs, populated: o.populated })
      }
    }
  }

  function reconnect(parts: Reconnecting, at: ReconnectAt, before: Before): void {
    const { fd, urgentFd, outgoing } = recover(parts, at, before)
    release(p)
    Object.assign(p, { fd, urgentFd, outgoing })
  }

  /** The guest goes on here, as if nothing had been, unless the destination may have run it. */
  function giveUp(error: unknown): void {
    hearLastWords(p.outgoing, error)
    if (neverRanThere(p)) p.origin?.resume()
    if (error instanceof CancelledError && status.can('cancel')) {
      status.step('cancel')
      status.step('cancelled')
      return
    }
    if (status.is('postcopy-active') && error instanceof ChannelError) status.step('channelLost')
    if (status.can('fail')) status.step('fail')
  }

  function report(error?: unknown): SourceReport {
    const { outcome, stopped, outgoing } = p
    const endUs = monotonicUs()
    const loadedUs = outgoing?.pongs.get(PING.loaded) ?? endUs
    return {
      ok: error === undefined,
      role: 'source',
      status: status.state(),
      ...(error === undefined ? {} : { error: explain(p, error) }),
      guestHere: error !== undefined && neverRanThere(p),
      mode: p.tookOver ? 'postcopy' : stopped === undefined ? 'none' : outcome!.finish,
      ...(outcome?.finish === 'postcopy' ? { switchReason: outcome.reason } : {}),
      downtimeMs: stopped === undefined ? 0 : (loadedUs - stopped.monotonicUs) / 1000,
      totalMs: p.startUs === 0 ? 0 : (endUs - p.startUs) / 1000,
      stoppedAtUs: stopped?.realtimeUs ?? 0,
      passes: stats.passes,
      pages: {
        normal: stats.pagesNormal,
        zero: stats.pagesZero,
        requested: stats.pagesRequested,
        likely: stats.pagesLikely,
      },
      requests: stats.requests,
      channels: p.urgentFd === undefined ? 1 : 2,
      bytes: stats.bytesSent,
      ...(outgoing?.stall === undefined ? {} : { stall: stallOf(outgoing.stall) }),
    }
  }

  try {
    migrate()
    p.recorder?.end(options.push.on)
    tell({ done: report() })
  } catch (error) {
    giveUp(error)
    p.recorder?.end(false)
    tell({ done: report(error), error: errorToMessage(error) })
  } finally {
    release(p)
    p.origin?.close()
    sayEnded()
  }
}

function release({ outgoing, fd, urgentFd = -1 }: Progress): void {
  outgoing?.close()
  releaseChannel(fd)
  releaseChannel(urgentFd)
}

const stallOf = ({ waitedMs, missedMs }: StallBudget): NonNullable<SourceReport['stall']> => ({
  waitedMs: waitedMs(),
  missedMs: missedMs(),
})

function recorderFor(
  p: Progress,
  blocks: readonly RamBlock[],
  limits: RecordLimits,
  known: Uint32Array = new Uint32Array(0),
): Recorder {
  return createRecorder({
    ...limits,
    totalPages: totalPages(blocks),
    known,
    isSent(page) {
      const { index, firstPage } = blockOfPage(blocks, page)
      return !p.outgoing!.dirty[index]!.get(page - firstPage)
    },
    bytesPerSecond: () => p.outgoing!.window.bytesPerSecond(),
    loadedAtMs() {
      const atUs = p.outgoing!.pongs.get(PING.loaded)
      return atUs === undefined ? undefined : atUs / 1000
    },
    done: (record) => tell({ record }),
  })
}

/**
 * Whether the destination cannot have run the guest. It says SHUT(1) when it fails; if it had not confirmed the device
 * state by then, it never ran the guest.
 */
function neverRanThere({ outgoing: o, tookOver }: Progress): boolean {
  if (tookOver) return false
  return o === undefined || !o.committed || (o.link.shut() === 1 && !o.pongs.has(PING.loaded))
}

/** What the destination sent before the connection broke may not have been read yet: why it failed, above all. */
function hearLastWords(o: Outgoing | undefined, error: unknown): void {
  if (o === undefined || o.link.shut() !== undefined || !(error instanceof ChannelError)) return
  try {
    o.link.pump(0)
  } catch {
    // SHUT, or the end of the connection, which is known.
  }
}

function explain(p: Progress, error: unknown): string {
  const { ifKept, ifGone } = p.origin?.words ?? { ifKept: '', ifGone: '' }
  const message = messageOf(error)
  return `${message}${neverRanThere(p) ? ifKept : ifGone}`
}
