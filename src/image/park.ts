// Parks a VM that a source migrates to us: its whole state becomes an image. Main thread; the park thread does the work.

import { CancelledError, errorFromMessage } from '../errors.js'
import { beforeExit } from '../exit-hook.js'
import { closeFd, parseUri, shutdownChannel } from '../os/channel.js'
import { createWake } from '../os/wake.js'
import { createStats, type Stats, statsBytes } from '../stats.js'
import { followThread, startThread } from '../thread.js'
import { openListener, type TlsListenOptions } from '../tls/tunnel.js'
import { PARK_STATS, type ParkReport, type ParkStat } from './park-report.js'
import type { ParkThreadData, ParkThreadMessage } from './park-thread.js'
import { assertCanWrite } from './publish.js'

export interface ParkOptions {
  /** Where a source connects: `tcp:HOST:PORT` (port 0: any), `unix:PATH` or `fd:N`. */
  readonly listen: string
  /** Of the image. It appears under this name only when it is whole and on disk. */
  readonly path: string
  /** Take the place of a file of that name. Default: such a file is an error. */
  readonly replace?: boolean
  /** Program and version, for the sidecar. */
  readonly by?: string
  /** Version of the QEMU that is parked, for the sidecar, when it is known. */
  readonly qemu?: string | null
  /** Take only a source that proves who it is, over TLS. For `tcp:`. */
  readonly tls?: TlsListenOptions
  /** Without TLS: listen on an address that other hosts can reach, and believe whoever comes. */
  readonly insecure?: boolean
}

export interface Parking {
  /** Where to connect, with the port that was chosen. */
  readonly uri: string
  /** Counters, live. */
  readonly stats: Readonly<Stats<ParkStat>>
  /** Resolves when a source is waited for, or never will be: one that comes before waits until a thread has started. */
  readonly ready: Promise<void>
  /** Resolves when it has ended, well or not; never rejects for what a source or a disk did. */
  readonly done: Promise<ParkReport & { readonly cause?: Error }>
  /** Give up: the guest stays at the source, and nothing is left on disk. No effect once the image is whole. */
  cancel(): void
}

/** Listens at once, for one source. @throws UsageError, ChannelError */
export function parkFrom(options: ParkOptions): Parking {
  const { path, replace = false, by = 'farfault', qemu = null } = options
  assertCanWrite(path, replace)
  const listener = openListener(options)
  const wake = createWake()
  const statsMemory = new SharedArrayBuffer(statsBytes(PARK_STATS))
  const data: ParkThreadData = {
    listenFd: listener.fd,
    listens: parseUri(options.listen).kind !== 'fd',
    wakeFd: wake.fd,
    statsMemory,
    path,
    replace,
    by,
    from: listener.uri,
    qemu,
  }
  const worker = startThread(new URL('./park-thread.js', import.meta.url), 'farfault park', data)
  let channelFd = -1

  /** Ends the thread wherever it blocks. */
  function cancel(): void {
    wake.signal()
    if (channelFd >= 0) shutdownChannel(channelFd)
  }
  const forget = beforeExit(cancel)

  let isReady = (): void => {}
  const ready = new Promise<void>((resolve) => {
    isReady = resolve
  })
  let result: (ParkReport & { cause?: Error }) | undefined
  const ended = followThread<ParkThreadMessage>(worker, (m) => {
    if ('ready' in m) isReady()
    else if ('connected' in m) channelFd = m.connected
    else if (m.error === undefined) result = m.done
    else {
      const cause = listener.reasonFor(errorFromMessage(m.error))
      result = { ...m.done, error: cause.message, cause }
    }
  })
  const done = ended.then(async () => {
    forget()
    if (channelFd >= 0) closeFd(channelFd)
    channelFd = -1
    listener.close()
    wake.close()
    await listener.ended()
    return result ?? cancelled()
  })
  done.then(isReady, isReady)
  return { uri: listener.uri, stats: createStats(PARK_STATS, statsMemory), ready, done, cancel }
}

function cancelled(): ParkReport & { cause: Error } {
  const cause = new CancelledError('parking was cancelled')
  return {
    ok: false,
    error: cause.message,
    cause,
    machine: '',
    mode: 'none',
    returnPath: false,
    memoryBytes: 0,
    bytes: 0,
    fileBytes: 0,
    diskBytes: 0,
    pages: { normal: 0, zero: 0 },
    durationMs: 0,
  }
}
