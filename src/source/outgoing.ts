// The state of an outgoing migration, and the steps that precopy and postcopy share. Source thread.

import { randomInt } from 'node:crypto'
import { CancelledError, ProtocolError } from '../errors.js'
import type { Machine } from '../machine.js'
import { AHEAD_MS, type OrderSpec } from '../order/orders.js'
import { createPageOrder, type PageOrder } from '../order/page-order.js'
import type { Recorder } from '../order/recorder.js'
import { monotonicMs, monotonicUs } from '../os/clock.js'
import type { Wake } from '../os/wake.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { pageSizeSummary, type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Stats } from '../stats.js'
import { trace, tracing } from '../trace.js'
import { encodeCommand, receivedBitmapBytes } from '../wire/messages.js'
import { encodeRamSetup } from '../wire/ram-setup.js'
import {
  type Configuration,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionStart,
} from '../wire/sections.js'
import { URGENT_TOKENS } from '../wire/urgent.js'
import { createLink, type Link } from './link.js'
import type { Origin } from './origin.js'
import { createPacer, type Pacer } from './pacer.js'
import type { SOURCE_STATS } from './report.js'
import { serveBeside } from './send-pages.js'
import { createSender, type Sender } from './sender.js'
import { createStallBudget, type StallBudget } from './stall-budget.js'
import type { SOURCE_STATUS } from './status.js'
import { askForUrgent } from './urgent.js'
import { createPushWindow, type PushWindow } from './window.js'
import { createYielding, NEVER_YIELDING, type Yielding, type YieldingOptions } from './yielding.js'

/** PING values. 1 to 4 stand where QEMU's stand; from CHUNKS on each pushed chunk has one. */
export const PING = {
  start: 1,
  discarded: 2,
  loaded: 3,
  packageSent: 4,
  ready: 5,
  earlyDiscards: 6,
  all: 7,
  chunks: 0x1000,
} as const

const TO_READ = 'to read what is sent to it'

/** Where to reconnect when the connection is lost after the switch: always there, or each time where the order says. */
export type ReconnectAt = { readonly uri: string } | 'when-told'

/** What the main thread may ask for while the migration is under way. */
export type Order =
  | { readonly order: 'cancel' }
  /** `recover` undefined: a connection that is lost is not made again. */
  | {
      readonly order: 'connect'
      readonly uri: string
      readonly recover: ReconnectAt | undefined
      /** As in `OutgoingOptions`, where it is known only now. */
      readonly preempt: boolean | undefined
    }
  /** Another process was the source, and died after the switch: go on from what the destination says that it has. */
  | { readonly order: 'take-over'; readonly recover: ReconnectAt }
  /** In `postcopy-paused`, where told: the destination listens there. */
  | { readonly order: 'reconnect'; readonly uri: string }
  | { readonly order: 'start-postcopy' }
  | { readonly order: 'bandwidth'; readonly precopy?: number; readonly postcopy?: number }

export interface OutgoingOptions {
  readonly configuration: Configuration
  /** The sender's to choose; it must not be one of the device state's. */
  readonly ramSectionId: number
  readonly postcopy: 'now' | 'auto' | 'never'
  /** How long the guest may stand still at the end of precopy, ms. */
  readonly downtimeLimitMs: number
  /** Bytes a second, 0 = no limit. */
  readonly maxBandwidth: number
  readonly maxPostcopyBandwidth: number
  /** How long the destination may take to make RAM ready, ms. */
  readonly setupTimeoutMs: number
  /** Names of RAM blocks whose pages the destination has already: they are announced, and nothing of them is sent. */
  readonly skip: readonly string[]
  /** A second connection for requested pages (QEMU's postcopy-preempt); the destination must expect it. */
  readonly preempt: boolean
  /** Ask for such a connection; a destination of our own says whether it takes one. */
  readonly urgent: boolean | 'where-slow'
  /** The source thread runs before others, where we may say so; see os/scheduling.ts. */
  readonly realTime: boolean
  /** How long to try to reconnect, where that was asked for, ms. */
  readonly recoverTimeMs: number
  /** How long the destination may say and take nothing while it is waited for, ms; undefined: see `LIMITS.silenceMs`. */
  readonly silenceTimeoutMs: number | undefined
  /** In which order pages go. */
  readonly order: OrderSpec
  /** After the switch, what is pushed without being asked for. */
  readonly push: {
    /** False: nothing; pages are served on demand until the destination closes the connection. */
    readonly on: boolean
    /** Before the guest may run, what is likely to be asked for goes for so long, ms; see `AHEAD_MS`. */
    readonly aheadMs: number
    /** What all threads of the guest may wait for pages, ms in each second; undefined: as long as it takes. */
    readonly stallMsPerSecond?: number | undefined
  } & YieldingOptions
}

/** All that is left goes, and gives way to nobody. */
export const PUSH_AT_ONCE: OutgoingOptions['push'] = { on: true, aheadMs: AHEAD_MS, ...NEVER_YIELDING }

export interface Outgoing {
  readonly options: OutgoingOptions
  readonly blocks: readonly RamBlock[]
  readonly origin: Origin
  readonly status: Machine<typeof SOURCE_STATUS>
  readonly stats: Stats<(typeof SOURCE_STATS)[number]>
  readonly link: Link
  readonly sender: Sender
  /** Where requested pages go: a channel of their own (postcopy-preempt), or `sender`. */
  readonly urgent: Sender
  /** From now on requested pages go there, and requests come from there. */
  useUrgent(fd: number): void
  /** What our own destination knows us by on a second connection. */
  readonly urgentToken: number
  /** The page may be sent a second time, over the other connection; asked once a page, and the answer is remembered. */
  mayRepeat(blockIndex: number, page: number): boolean
  readonly order: PageOrder
  readonly window: PushWindow
  readonly pacer: Pacer
  /** Still to send: never sent, or written since. */
  readonly dirty: readonly Bitmap[]
  /** Of these, what goes without being asked for. */
  readonly background: readonly Bitmap[]
  /** It holds something; what does not is zero, and is not looked at. */
  readonly populated: readonly Bitmap[]
  /** Empty between two looks at what was written. */
  readonly written: readonly Bitmap[]
  /** `start-postcopy` was ordered. */
  switchWanted: boolean
  /** The package is on its way: cancelling is no longer possible, RAM here is no longer the guest's. */
  readonly committed: boolean
  /** Whether background pages should wait for the guest's. */
  readonly yielding: Yielding
  /** What the guest may wait for pages, where there is a limit. */
  readonly stall: StallBudget | undefined
  /** When that was, ms of `monotonicMs`. */
  readonly committedMs: number
  commit(): void
  /** Bytes sent over connections that are lost. */
  bytesBefore: number
  /** Chunks pushed over this connection. */
  chunks: number
  /** What the destination has said since it was asked for what it has; undefined when it was not asked. */
  recovery: Recovery | undefined
  /** Where it is noted what is asked for. */
  readonly recorder?: Recorder | undefined
  /** PINGs answered, and when (CLOCK_MONOTONIC, µs). */
  readonly pongs: Map<number, number>
  close(): void
}

type Mutable<T> = { -readonly [name in keyof T]: T[name] }

export interface Recovery {
  /** By block: one bit a target page, placed. */
  readonly received: Map<string, Uint8Array>
  acknowledged: boolean
}

export interface OutgoingParts {
  readonly fd: number
  readonly urgentFd: number | undefined
  readonly wake: Wake
  readonly options: OutgoingOptions
  readonly blocks: readonly RamBlock[]
  readonly origin: Origin
  readonly status: Machine<typeof SOURCE_STATUS>
  readonly stats: Stats<(typeof SOURCE_STATS)[number]>
  readonly silenceMs: number
  /** Pages that earlier runs asked for: numbers among those of all blocks, in the order of their first use. */
  readonly recorded?: Uint32Array | undefined
  /** Where it is noted what is asked for. */
  readonly recorder?: Recorder | undefined
  takeOrders(): Order[]
}

export function createOutgoing(parts: OutgoingParts): Outgoing {
  const { blocks, options, stats } = parts
  const dirty = blocks.map((block) => createBitmap(block.pages))
  const populated = blocks.map((block) => createBitmap(block.pages))
  const byName = new Map(blocks.map((block) => [block.name, block]))
  const background = parts.origin.pushZeroPages ? dirty : blocks.map((block) => createBitmap(block.pages))
  const urgentToken = randomInt(URGENT_TOKENS)
  // Only our own destination takes a page twice, and only one that it has asked for.
  let repeats = false // until there is a second connection
  const repeated = blocks.map((block) => createBitmap(block.pages))
  function mayRepeat(blockIndex: number, page: number): boolean {
    if (!repeats || blocks[blockIndex]!.ratio > 1 || !window.isSlow() || repeated[blockIndex]!.get(page))
      return false
    repeated[blockIndex]!.set(page)
    return true
  }
  const order = createPageOrder({
    spec: options.order,
    blocks,
    dirty,
    background,
    recorded: parts.recorded,
    wholeHostPages: () => outgoing.committed,
    mayRepeat,
  })
  const window = createPushWindow()
  const pacer = createPacer(options.maxBandwidth, monotonicMs())
  const pongs = new Map<number, number>()

  const yielding = createYielding(options.push)
  const { stallMsPerSecond } = options.push
  const stall = stallMsPerSecond === undefined ? undefined : createStallBudget(stallMsPerSecond)
  function onRequest(name: string, start: number, length: number): void {
    stats.requests++
    yielding.noteRequest(link.wokenMs())
    if (tracing()) trace('migrate_handle_rp_req_pages', name, start, length)
    const block = byName.get(name)
    function bad(what: string): never {
      throw new ProtocolError(`the destination asked for ${what}`, {
        offset: 0,
        record: 'REQ_PAGES',
        got: `block "${name}", start ${start}, length ${length}`,
      })
    }
    if (block === undefined) bad('a page of a RAM block that does not exist')
    if (start % TARGET_PAGE_BYTES !== 0 || length % TARGET_PAGE_BYTES !== 0) bad('pages that are not aligned')
    if (length === 0 || start + length > block.length) bad('pages outside of the RAM block')
    const page = start / TARGET_PAGE_BYTES
    const pages = length / TARGET_PAGE_BYTES
    if (!order.request(block.index, page, pages)) bad('too many pages at once')
    parts.recorder?.note(block.firstPage + page, pages, link.wokenMs())
  }

  function onWake(): void {
    for (const message of parts.takeOrders()) {
      if (message.order === 'cancel') {
        // Nothing is under way while the destination is asked what it has.
        if (!outgoing.committed || outgoing.recovery !== undefined) throw new CancelledError()
      } else if (message.order === 'start-postcopy') {
        outgoing.switchWanted = true
      } else if (message.order === 'bandwidth') {
        limits.precopy = message.precopy ?? limits.precopy
        limits.postcopy = message.postcopy ?? limits.postcopy
        pacer.bytesPerSecond = outgoing.committed ? limits.postcopy : limits.precopy
      }
    }
  }

  const limits = { precopy: options.maxBandwidth, postcopy: options.maxPostcopyBandwidth }
  const link = createLink(parts.fd, parts.wake, parts.silenceMs, {
    onRequest,
    // One read holds a few hundred requests; leave room for them.
    canTakeRequests: () => order.queued() < 60_000,
    onPong(value) {
      const nowUs = monotonicUs()
      if (value < PING.chunks || value % URGENT_TOKENS === urgentToken) pongs.set(value, nowUs)
      else window.acknowledged(value, nowUs)
    },
    expectedBitmapBytes(name) {
      const block = outgoing.recovery === undefined ? undefined : byName.get(name)
      return block === undefined ? undefined : receivedBitmapBytes(block.pages)
    },
    onBitmap: (block, bitmap) => void outgoing.recovery?.received.set(block, bitmap),
    onResumeAck(value) {
      if (outgoing.recovery === undefined || value !== 1) {
        throw new ProtocolError('unexpected answer to POSTCOPY_RESUME', {
          offset: 0,
          record: 'RESUME_ACK',
          got: `${value}`,
        })
      }
      outgoing.recovery.acknowledged = true
    },
    onWake,
  })
  const { fd, urgentFd } = parts
  const urgentSender = (fd: number): Sender =>
    createSender(
      fd,
      undefined,
      () => void link.pumpPeer(TO_READ, fd),
      (pages) => parts.origin.release(pages, true),
    )
  const sender = createSender(
    fd,
    options.ramSectionId,
    () => {
      link.pumpPeer(TO_READ, fd)
      serveBeside(outgoing)
    },
    (pages) => parts.origin.release(pages, false),
  )

  // One by one: in the same order each time, so that what was compiled in the rehearsal fits the real one.
  const outgoing: Mutable<Outgoing> = {
    options,
    blocks,
    origin: parts.origin,
    status: parts.status,
    stats,
    recorder: parts.recorder,
    link,
    sender,
    urgent: urgentFd === undefined ? sender : urgentSender(urgentFd),
    useUrgent(fd) {
      outgoing.urgent = urgentSender(fd)
      link.listenAlso(fd)
      repeats = true
    },
    urgentToken,
    mayRepeat,
    order,
    window,
    pacer,
    dirty,
    background,
    populated,
    written: blocks.map((block) => createBitmap(block.pages)),
    switchWanted: false,
    bytesBefore: 0,
    chunks: 0,
    recovery: undefined,
    pongs,
    yielding,
    stall,
    committed: false,
    committedMs: 0,
    commit() {
      const nowMs = monotonicMs()
      outgoing.committed = true
      outgoing.committedMs = nowMs
      yielding.noteRequest(nowMs) // the guest that starts there is about to ask
      parts.recorder?.begin(nowMs)
      pacer.bytesPerSecond = limits.postcopy
    },
    close() {
      sender.close()
      if (outgoing.urgent !== sender) outgoing.urgent.close()
      link.close()
    },
  }
  return outgoing
}

/**
 * Everything up to the RAM block list, and the wait until the destination has made its RAM ready: a guest that is
 * stopped before that would stand still while the other side allocates.
 */
export function sendPrefix(o: Outgoing, asksForUrgent = false): void {
  const { sender, blocks, options } = o
  const postcopy = options.postcopy !== 'never'
  sender.control(encodeHeader())
  sender.control(encodeConfiguration(options.configuration))
  sender.control(encodeCommand({ name: 'OPEN_RETURN_PATH' }))
  sender.control(encodeCommand({ name: 'PING', value: PING.start }))
  if (asksForUrgent) askForUrgent(o)
  if (postcopy) {
    sender.control(
      encodeCommand({
        name: 'POSTCOPY_ADVISE',
        sizes: { pageSizeSummary: pageSizeSummary(blocks), targetPageSize: TARGET_PAGE_BYTES },
      }),
    )
  }
  sender.control(encodeSectionStart({ id: options.ramSectionId, idstr: 'ram', instance: 0, version: 4 }))
  sender.control(encodeRamSetup(blocks, { postcopy, hostPageSize: TARGET_PAGE_BYTES }))
  sender.control(encodeFooter(options.ramSectionId))
  sender.control(encodeCommand({ name: 'PING', value: PING.ready }))
  sender.flush()
  o.link.pumpUntil(() => o.pongs.has(PING.ready), options.setupTimeoutMs, 'making RAM ready')
}

/** Bytes sent so far, over all channels and connections. */
export const sentBytes = (o: Outgoing): number =>
  o.bytesBefore + o.sender.bytes() + (o.urgent === o.sender ? 0 : o.urgent.bytes())

/** Bytes of RAM still to send without being asked for. */
export function remainingBytes(o: Outgoing): number {
  return o.background.reduce((sum, bitmap) => sum + bitmap.count(), 0) * TARGET_PAGE_BYTES
}
