// Serves a parked VM to a destination that resumes it: plays the postcopy source from the image. Main thread.

import { assertAtLeastZero, LIMITS } from '../limits.js'
import { AHEAD_MS, orderSpec } from '../order/orders.js'
import { type Source, startSource } from '../source/start-source.js'
import { quietMsWhere, RECORDING_PATIENCE_MS, requestsTireWhere, YIELDING } from '../source/yielding.js'
import type { TlsConnectOptions } from '../tls/tunnel.js'
import { createDemand, type DemandOptions, type DemandReport } from './demand.js'
import { identityOf } from './identity.js'
import { openImage } from './image.js'
import type { ServeThreadData } from './serve-thread.js'

export interface ServeOptions extends DemandOptions {
  /** False: pages are sent only when they are asked for, for as long as the VM lives. Default true. */
  readonly push?: boolean
  /**
   * What a working set holds goes for so long before the VM runs, ms. Default 6. With more, a busy VM runs later, and then waits for
   * fewer pages; 0 lets it run at once.
   */
  readonly aheadMs?: number
  /** Pages that are not likely to be asked for are sent only when nobody has asked for one in this time, ms. Default 10, or 50 where a working set goes first. */
  readonly quietMs?: number
  /** A guest that never ceases to ask holds them up for no longer than this, ms. Default 100, or 500 where they are recorded. */
  readonly patienceMs?: number
  /** What the VM's threads may wait for pages, ms in each second, all together: then pages that were not asked for go less often. */
  readonly stallMsPerSecond?: number
  /** Pages in the group that a demanded page brings, where the order says that it does. Default 64. */
  readonly aroundPages?: number
  /** Bytes a second for pages that were not asked for; 0 (default) is no limit. */
  readonly maxBandwidth?: number
  /** Compare page data with the sidecar's checksums before it is sent. Default true. */
  readonly verify?: boolean
  /** How long the destination may take to make its RAM ready, ms. Default 10000. */
  readonly setupTimeoutMs?: number
  /** Send requested pages over a second connection; the destination has the capability `postcopy-preempt` on. */
  readonly preempt?: boolean
  /**
   * Let the kernel run before all others (SCHED_FIFO) who brings what the VM waits for: our thread that sends, and the one that
   * takes requested pages, where they have a connection of their own to a QEMU of the same user on this machine that names its threads.
   * Until all RAM is in. Where we may (root may); elsewhere all goes on as if nothing had been said. Default true.
   */
  readonly realTime?: boolean
  /**
   * How long the destination may say nothing and take nothing while it is waited for, ms; then the connection is lost.
   * Default 120000, or 30000 where it is recovered. Without push, silence is no loss.
   */
  readonly silenceTimeoutMs?: number
  /** How long to try to reconnect, where `source.connect` is told to, ms. Default 300000. */
  readonly recoverTimeMs?: number
  /** Name of the RAM block that the destination maps from the image itself: then all the rest goes first, by precopy. */
  readonly mapped?: string
  /** Send only to a destination that proves who it is, over TLS. For `tcp:`. */
  readonly tls?: TlsConnectOptions
}

/** What a destination must be to take the VM. */
export interface ServedImage {
  readonly machine: string
  /** Bytes of all RAM blocks. */
  readonly memoryBytes: number
  /** What tells this image from others: see identity.ts. */
  readonly identity: string
  readonly source: Source
  /** What the VM asks for: so far, or in all when the source has ended. */
  demand(): DemandReport
}

/**
 * Opens and checks the image, and boots a thread that will serve it: `source.connect(uri)` when the destination waits there.
 * @throws ImageError, UsageError
 */
export function serveImage(path: string, options: ServeOptions = {}): ServedImage {
  const { push = true, maxBandwidth = 0, verify = true, setupTimeoutMs = 10_000 } = options
  const {
    recoverTimeMs = LIMITS.recoverMs,
    silenceTimeoutMs,
    aheadMs = AHEAD_MS,
    preempt = false,
    realTime = true,
    mapped,
    aroundPages,
    stallMsPerSecond,
  } = options
  if (stallMsPerSecond !== undefined) assertAtLeastZero({ stallMsPerSecond })
  if (silenceTimeoutMs !== undefined) assertAtLeastZero({ silenceTimeoutMs })
  assertAtLeastZero({
    aheadMs,
    quietMs: options.quietMs ?? 0,
    patienceMs: options.patienceMs ?? 0,
    maxBandwidth,
    setupTimeoutMs,
    recoverTimeMs,
    recordMaxMs: options.recordMaxMs ?? 0,
  })
  const { machine, memoryBytes, identity, configuration, ramSectionId, demand } = lookInto(path, options)
  const { recorded, record } = demand
  const order = orderSpec(demand.order, aroundPages)
  const { quietMs = quietMsWhere(order.recorded && recorded !== undefined) } = options
  const { patienceMs = demand.keeps ? RECORDING_PATIENCE_MS : YIELDING.patienceMs } = options
  const requestsTire = requestsTireWhere(order, demand.keeps)
  const source = startSource<ServeThreadData>({
    thread: new URL('./serve-thread.js', import.meta.url),
    tls: options.tls,
    onRecord: demand.take,
    data: {
      path,
      verify,
      recorded,
      record: mapped === undefined ? record : undefined,
      options: {
        configuration,
        ramSectionId,
        postcopy: mapped === undefined ? 'now' : 'never',
        downtimeLimitMs: 0,
        maxBandwidth: 0,
        maxPostcopyBandwidth: maxBandwidth,
        setupTimeoutMs,
        skip: mapped === undefined ? [] : [mapped],
        preempt,
        urgent: false,
        realTime,
        recoverTimeMs,
        silenceTimeoutMs,
        order,
        push: { on: push, aheadMs, quietMs, patienceMs, requestsTire, stallMsPerSecond },
      },
    },
  })
  return { machine, memoryBytes, identity, source, demand: demand.report }
}

function lookInto(path: string, options: DemandOptions) {
  const image = openImage(path)
  try {
    const { capabilities: _, ...configuration } = image.configuration
    const memoryBytes = image.blocks.reduce((sum, { length }) => sum + length, 0)
    const { machine, ramSectionId } = image
    const [identity, demand] = [identityOf(image), createDemand(image, options)]
    return { machine, memoryBytes, identity, configuration, ramSectionId, demand }
  } finally {
    image.close()
  }
}
