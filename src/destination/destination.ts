// `receive`: waits for a migration and takes the guest in. Main thread: it owns the lifetimes (listener, userfaultfd,
// threads, guest) and never blocks, reads or writes the connection.

import { EventEmitter } from 'node:events'
import {
  CancelledError,
  ChannelError,
  errorFromMessage,
  errorToMessage,
  GuestError,
  HostUnsupportedError,
  UsageError,
} from '../errors.js'
import { beforeExit } from '../exit-hook.js'
import type { RamBlockShape } from '../guest/guest.js'
import type { GuestHandle } from '../guest/guest-handle.js'
import type { FirstInstruction } from '../guest/guest-messages.js'
import type { GuestConnection } from '../guest/guest-remote.js'
import { assertAtLeastZero, LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { closeFd, formatUri, parseUri, shutdownChannel } from '../os/channel.js'
import { monotonicUs } from '../os/clock.js'
import { openUserfaultfd, type Userfaultfd } from '../os/userfaultfd.js'
import type { Feature } from '../os/userfaultfd-abi.js'
import { createWake } from '../os/wake.js'
import { numberBlocks, type RamBlock, TARGET_PAGE_BYTES, totalPages } from '../ram/block.js'
import { createStats, type Stats, statsBytes } from '../stats.js'
import { followThread, startThread } from '../thread.js'
import { assertTcp, type GuardedListener, openListener, type TlsListenOptions } from '../tls/tunnel.js'
import { trace } from '../trace.js'
import { createBlocktime } from './blocktime.js'
import type {
  DestinationThreadData,
  DestinationThreadMessage,
  ListenAnswer,
  PrepareAnswer,
} from './destination-thread.js'
import type { Announcement } from './incoming.js'
import { samplePages } from './page-map.js'
import type { DestinationReport, IncomingStatus } from './report.js'
import { allocatePageMaps, CELL, DESTINATION_STATS, type PageMaps } from './shared.js'
import { INCOMING_STATUS } from './status.js'

export interface ReceiveOptions {
  /** `tcp:HOST:PORT` (port 0: any), `unix:PATH` or `fd:N`. */
  readonly listen: string
  /** Makes the guest that the stream announces; it must have these RAM blocks and must not have run. */
  readonly guest: (machine: string, blocks: readonly RamBlockShape[]) => Promise<GuestHandle>
  /** A guest with more RAM is refused before anything is made for it, bytes. Default 64 GiB. */
  readonly memoryBytesMax?: number
  /**
   * When the connection is lost after the switch, listen there and wait for the source to come back, instead of destroying
   * the guest. The source has to be told to reconnect there. Over TLS, where the migration is.
   */
  readonly recover?: string
  /** How long to wait for it, ms. Default 300000. */
  readonly recoverTimeMs?: number
  /**
   * The source is a QEMU with the capability `postcopy-preempt`: it opens a second connection, for requested pages. With a
   * source of ours both ends agree on that by themselves.
   */
  readonly preempt?: boolean
  /** Take only a source that proves who it is, over TLS. For `tcp:`. */
  readonly tls?: TlsListenOptions
  /** Without TLS: listen on an address that other hosts can reach, and believe whoever comes. */
  readonly insecure?: boolean
}

export interface Received {
  readonly report: DestinationReport & { readonly cause?: Error }
  /** The running guest, when `report.ok`; the caller's from now on. Otherwise it has been destroyed. */
  readonly guest: GuestHandle | undefined
}

export interface Incoming extends EventEmitter<{ status: [IncomingStatus]; guest: [GuestHandle] }> {
  /** Where to connect, with the port that was chosen. */
  readonly uri: string
  readonly status: IncomingStatus
  readonly stats: Readonly<Stats<(typeof DESTINATION_STATS)[number]>>
  /** State of RAM in `cells` equal parts, for display: see page-map.ts. Empty before the blocks are known. */
  pageMap(cells: number): Uint8Array
  /** Give up: the guest, if it is here already, is destroyed. */
  cancel(): void
  /** Resolves when it has ended, well or not; never rejects for what a peer or a guest did. */
  readonly done: Promise<Received>
}

/** What exists once the guest does. */
interface Setup {
  readonly guest: GuestHandle
  readonly blocks: readonly RamBlock[]
  readonly maps: PageMaps
  readonly userfaultfd: Userfaultfd | undefined
  readonly connection: GuestConnection
}

/** How long the destination thread may take to tell the source that the guest has failed. */
const LAST_WORDS_MS = 1000
const PORT_FREE_MS = 2000

/** Listens at once. @throws UsageError, ChannelError, HostUnsupportedError */
export function receive(options: ReceiveOptions): Incoming {
  assertRecoverable(options)
  const { recover, recoverTimeMs = LIMITS.recoverMs, insecure = false, tls } = options
  assertAtLeastZero({ recoverTimeMs })
  const listener = openListener(options)
  const wake = createWake()
  const cells = new Int32Array(new SharedArrayBuffer(CELL.count * 4))
  const statsMemory = new SharedArrayBuffer(statsBytes(DESTINATION_STATS))
  const stats = createStats(DESTINATION_STATS, statsMemory)
  const status = createMachine('incoming', INCOMING_STATUS, cells, CELL.status)
  const events = new EventEmitter<{ status: [IncomingStatus]; guest: [GuestHandle] }>()
  const data: DestinationThreadData = {
    listenFd: listener.fd,
    wakeFd: wake.fd,
    cells,
    statsMemory,
    recoverTimeMs: recover === undefined ? 0 : recoverTimeMs,
    preempt: options.preempt === true,
  }
  const worker = startThread(
    new URL('./destination-thread.js', import.meta.url),
    'farfault destination',
    data,
  )

  /** The connection, and the second one where there is one. */
  let channelFds: number[] = []
  let recoverListener: GuardedListener | undefined
  let connectedUs = 0
  let announced: Announcement | undefined
  let setup: Setup | undefined
  let failure: Error | undefined
  let firstInstruction: FirstInstruction | undefined

  /** Ends the destination thread wherever it blocks; it then fails with what `failure` says. */
  function abort(error: Error): void {
    failure ??= error
    Atomics.store(cells, CELL.stopReading, 1)
    wake.signal()
    for (const fd of channelFds) shutdownChannel(fd)
  }

  /** The guest failed: the destination thread ends as well, but first it tells the source, which may still have the guest. */
  function endFor(error: Error): void {
    failure ??= error
    Atomics.store(cells, CELL.stopReading, 1)
    wake.signal()
    setTimeout(() => abort(error), LAST_WORDS_MS).unref()
  }

  function closeChannels(): void {
    for (const fd of channelFds) closeFd(fd)
    channelFds = []
  }

  /** The source is to come back there. */
  async function listenAgain(lost: Error): Promise<void> {
    listener.close()
    try {
      if (tls === undefined) recoverListener = openListener({ listen: recover!, insecure })
      // With TLS it stays open: nobody gets through who does not prove who he is.
      else recoverListener ??= await patiently(() => openListener({ listen: recover!, tls }))
      worker.postMessage({ listenFd: recoverListener.fd } satisfies ListenAnswer)
      wake.signal()
    } catch (error) {
      abort(new ChannelError(`${lost.message}; and ${(error as Error).message}`, { cause: error }))
    }
  }

  async function prepare(announcement: Announcement): Promise<void> {
    announced = announcement
    let answer: PrepareAnswer
    try {
      setup = await makeSetup(announcement)
      const { guest, blocks, maps, userfaultfd, connection } = setup
      answer = { blocks, maps, guest: connection, userfaultfdFd: userfaultfd?.fd }
      worker.postMessage(answer, [connection.port])
      events.emit('guest', guest)
    } catch (error) {
      answer = { error: errorToMessage(error) }
      worker.postMessage(answer)
    }
    Atomics.add(cells, CELL.answers, 1)
    Atomics.notify(cells, CELL.answers)
  }

  async function makeSetup({ machine, blocks: shapes, advised }: Announcement): Promise<Setup> {
    const memoryBytes = shapes.reduce((sum, shape) => sum + shape.length, 0)
    const { memoryBytesMax = LIMITS.receiveRamBytesMax } = options
    if (memoryBytes > memoryBytesMax) {
      throw new GuestError(
        `the guest that comes has ${memoryBytes} bytes of RAM; at most ${memoryBytesMax} are taken`,
      )
    }
    const guest = await options.guest(machine, shapes)
    try {
      assertSameShape(guest, machine, shapes)
      guest.on('failed', endFor)
      guest.on('firstInstruction', (times) => {
        firstInstruction = times
      })
      const blocks = numberBlocks(guest.blocks)
      const userfaultfd = advised ? openUserfaultfd({ features: wantedFeatures(blocks) }) : undefined
      return { guest, blocks, maps: allocatePageMaps(blocks), connection: guest.connect(), userfaultfd }
    } catch (error) {
      await guest.destroy()
      throw error
    }
  }

  /** Lets every thread go that may be stalled on an absent page. Only when all is received, or the guest is being destroyed. */
  function letGo(): void {
    const { userfaultfd, blocks } = setup ?? {}
    if (userfaultfd === undefined || status.is('completed')) return
    for (const block of blocks!) {
      try {
        userfaultfd.unregister(block.address, block.length)
      } catch {
        // Not registered yet, or the guest and its RAM have gone: then nobody stalls there.
      }
    }
  }

  async function tearDown(ok: boolean): Promise<void> {
    const destroyed = ok ? undefined : setup?.guest.kill() // before its RAM is let go: it must not run on zeros
    letGo()
    await destroyed
    // Closed here and last: until now other threads knew the number, which the kernel gives to whoever opens next.
    closeChannels()
    trace('postcopy_ram_incoming_cleanup_closeuf')
    setup?.userfaultfd?.close()
    wake.close()
    listener.close()
    recoverListener?.close()
    await Promise.all([listener.ended(), recoverListener?.ended()])
  }

  const forget = beforeExit(() => {
    abort(new CancelledError('the process is exiting'))
    // The thread is told to end before its pages are let go: it must not run on zeros.
    if (setup !== undefined && !status.is('completed')) void setup.guest.kill()
    letGo()
    Atomics.add(cells, CELL.answers, 1)
    Atomics.notify(cells, CELL.answers)
  })

  let stoppedAtUs: number | undefined
  let ok = false
  let endUs = 0
  const threadEnded = followThread<DestinationThreadMessage>(worker, (m) => {
    if ('status' in m) events.emit('status', m.status as IncomingStatus)
    else if ('connected' in m) {
      closeChannels()
      channelFds = [m.connected]
      connectedUs ||= monotonicUs()
      if (tls === undefined) recoverListener?.close()
    } else if ('joined' in m) {
      channelFds.push(m.joined)
      listener.close()
    } else if ('listensNoMore' in m) listener.close()
    else if ('paused' in m) void listenAgain(errorFromMessage(m.paused))
    else if ('announcement' in m) void prepare(m.announcement)
    else if ('complete' in m) {
      ok = true
      endUs = monotonicUs()
      stoppedAtUs = m.complete.stoppedAtUs
    } else {
      failure ??= (recoverListener ?? listener).reasonFor(errorFromMessage(m.failed))
      stoppedAtUs = m.stoppedAtUs
    }
  })
  const done = threadEnded.then(async (): Promise<Received> => {
    if (!ok) failure ??= new CancelledError('receiving was cancelled')
    await tearDown(ok)
    if (ok) await settled(() => firstInstruction !== undefined)
    forget()
    return {
      report: report(ok, stoppedAtUs, endUs || monotonicUs()),
      guest: ok ? setup?.guest : undefined,
    }
  })

  function report(ok: boolean, stoppedAtUs: number | undefined, endUs: number): Received['report'] {
    const blocktime = setup === undefined ? undefined : createBlocktime(setup.maps.blocktime).report()
    const runsAtUs = firstInstruction?.firstInstructionAt.realtimeUs
    return {
      ok,
      role: 'destination',
      status: status.state(),
      ...(failure === undefined ? {} : { error: failure.message, cause: failure }),
      machine: announced?.machine ?? '',
      memoryBytes: setup === undefined ? 0 : totalPages(setup.blocks) * TARGET_PAGE_BYTES,
      ...(stoppedAtUs === undefined || runsAtUs === undefined
        ? {}
        : { downtimeMs: (runsAtUs - stoppedAtUs) / 1000 }),
      totalMs: connectedUs === 0 ? 0 : (endUs - connectedUs) / 1000,
      postcopyMs: stats.packageAtUs === 0 ? 0 : (endUs - stats.packageAtUs) / 1000,
      pages: { normal: stats.pagesNormal, zero: stats.pagesZero, requested: stats.requests },
      faults: blocktime?.faults ?? 0,
      faultLatencyUs: blocktime?.latencyUs ?? { p50: 0, p99: 0, max: 0 },
      faultHistogramUs: blocktime?.histogramUs ?? [],
      blocktimeMs: blocktime?.overlappedMs ?? 0,
      blocktimeByThreadMs: blocktime?.byThreadMs ?? {},
      bytes: stats.bytes + stats.urgentBytes,
    }
  }

  return Object.defineProperties(events, {
    uri: { value: listener.uri },
    status: { get: () => status.state() },
    stats: { value: stats },
    pageMap: {
      value: (count: number) => (setup === undefined ? new Uint8Array(0) : samplePages(setup, count)),
    },
    cancel: { value: () => abort(new CancelledError('receiving was cancelled')) },
    done: { value: done },
  }) as Incoming
}

/** What is wrong with it must not be found first when the guest depends on it. */
function assertRecoverable({ recover, tls, insecure = false }: ReceiveOptions): void {
  if (recover === undefined) return
  const uri = parseUri(recover)
  if (uri.kind === 'tcp' && uri.port === 0)
    throw new UsageError(`the source cannot know the port of ${recover}`)
  if (uri.kind === 'fd') throw new UsageError(`nobody can come back to ${recover}`)
  if (tls !== undefined) assertTcp(recover)
  if (uri.kind !== 'tcp') return
  // Who listens with TLS may be reached: that is decided when it is opened.
  openListener({ listen: formatUri({ ...uri, port: 0 }), insecure: insecure || tls !== undefined }).close()
}

/** The tunnel thread closes a listener a little later than it is told to; until then its port is taken. */
async function patiently<T>(open: () => T): Promise<T> {
  for (const endMs = performance.now() + PORT_FREE_MS; ; ) {
    try {
      return open()
    } catch (error) {
      if (performance.now() > endMs || !(error instanceof ChannelError)) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** The kernel says which thread faults where it can; huge pages and memory files need support of their own. */
function wantedFeatures(blocks: readonly RamBlock[]): Feature[] {
  const huge = blocks.some((block) => block.ratio > 1)
  return ['THREAD_ID', ...(huge ? (['MISSING_HUGETLBFS'] as const) : [])]
}

function assertSameShape(guest: GuestHandle, machine: string, shapes: readonly RamBlockShape[]): void {
  function differs(what: string): never {
    throw new GuestError(`the guest made here does not fit the one that comes: ${what}`)
  }
  if (guest.machine !== machine) differs(`it is a ${guest.machine}, not a ${machine}`)
  if (guest.blocks.length !== shapes.length)
    differs(`${guest.blocks.length} RAM blocks, not ${shapes.length}`)
  for (const shape of shapes) {
    const block = guest.blocks.find((b) => b.name === shape.name)
    if (block === undefined) differs(`it has no RAM block "${shape.name}"`)
    if (block.length !== shape.length)
      differs(`RAM block "${shape.name}" has ${block.length} bytes, not ${shape.length}`)
    if (block.pageSize !== shape.pageSize)
      differs(`RAM block "${shape.name}" has pages of ${block.pageSize} bytes`)
    if (block.backing === 'shared') {
      throw new HostUnsupportedError(
        `RAM block "${shape.name}" is mapped shared: another process could touch it without being stopped at absent pages`,
      )
    }
  }
}

/** Messages of other threads may be a turn of the event loop late. */
async function settled(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 100 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 2))
}
