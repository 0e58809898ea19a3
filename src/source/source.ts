// `migrate`: moves a guest that runs here. Main thread; never blocks.

import type { GuestHandle } from '../guest/guest-handle.js'
import { assertAtLeastZero, LIMITS } from '../limits.js'
import { chooseOrder, type LiveOrderChoice, orderSpec } from '../order/orders.js'
import { parseUri } from '../os/channel.js'
import { numberBlocks } from '../ram/block.js'
import { assertTls, type TlsConnectOptions } from '../tls/tunnel.js'
import { type OutgoingOptions, PUSH_AT_ONCE } from './outgoing.js'
import type { SourceThreadData } from './source-thread.js'
import { assertRecoverable, type Migration, startSource } from './start-source.js'

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
  /**
   * Requested pages go over a second connection, where the destination takes one, so that a lost packet of the others holds
   * them up no longer. By default where a round trip takes 2 ms or more, as far as the kernel knows (TCP without TLS): on a
   * fast link a second connection costs more than it gives. After a recovery there is one connection.
   */
  readonly urgentChannel?: boolean
  /**
   * How long the destination may say nothing and take nothing while it is waited for, ms; then the connection is lost.
   * Default 120000, or 30000 with `recover`.
   */
  readonly silenceTimeoutMs?: number
  /**
   * When the connection is lost after the switch, reconnect there and go on, instead of giving up; the destination has to
   * listen there again. Over TLS, where the migration is.
   */
  readonly recover?: string
  /** How long to try that, ms. Default 300000. */
  readonly recoverTimeMs?: number
  /** In which order pages go after the switch: a name of `ORDERS`. Default `adaptive`. */
  readonly order?: LiveOrderChoice
  /** Pages in the group that a demanded page brings, where the order says that it does. Default 64. */
  readonly aroundPages?: number
  /** Send only to a destination that proves who it is, over TLS. For `tcp:`. */
  readonly tls?: TlsConnectOptions
}

/** Moves a running guest. It stays the caller's: stopped after a migration that went well, running after one that did not. */
export function migrate(guest: GuestHandle, options: MigrateOptions): Migration {
  if (options.tls === undefined) parseUri(options.to)
  else assertTls(options.to, options.tls)
  const thread = threadOptions(guest, options)
  const recover = options.recover === undefined ? undefined : { uri: options.recover }
  if (recover !== undefined) assertRecoverable(recover, options.tls)
  const connection = guest.connect()
  const source = startSource<SourceThreadData>({
    thread: new URL('./source-thread.js', import.meta.url),
    data: { options: thread, blocks: numberBlocks(guest.blocks), guest: connection },
    transferList: [connection.port],
    tls: options.tls,
  })
  source.connect(options.to, recover)
  return source
}

function threadOptions(guest: GuestHandle, options: MigrateOptions): OutgoingOptions {
  const { postcopy = 'auto', downtimeLimitMs = 25, maxBandwidth = 0, maxPostcopyBandwidth = 0 } = options
  const { setupTimeoutMs = 10_000, recoverTimeMs = LIMITS.recoverMs, silenceTimeoutMs } = options
  const { order = 'adaptive', urgentChannel = 'where-slow' } = options
  assertAtLeastZero({ downtimeLimitMs, maxBandwidth, maxPostcopyBandwidth, setupTimeoutMs, recoverTimeMs })
  if (silenceTimeoutMs !== undefined) assertAtLeastZero({ silenceTimeoutMs })
  return {
    configuration: { machine: guest.machine },
    ramSectionId: LIVE_RAM_SECTION_ID,
    postcopy,
    downtimeLimitMs,
    maxBandwidth,
    maxPostcopyBandwidth,
    setupTimeoutMs,
    skip: [],
    recoverTimeMs,
    silenceTimeoutMs,
    preempt: false,
    realTime: false, // its guest runs on this machine
    urgent: postcopy !== 'never' && parseUri(options.to).kind !== 'fd' && urgentChannel,
    order: orderSpec(chooseOrder(order, 'live'), options.aroundPages),
    push: PUSH_AT_ONCE,
  }
}
