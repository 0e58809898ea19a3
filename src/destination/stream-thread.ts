// The stream thread: accepts the connection and takes the stream in, to its end or its failure. Blocks in accept, in
// read, in placement, and while the main thread makes the guest.

import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { ChannelError, type ErrorMessage, errorFromMessage, errorToMessage, GuestError } from '../errors.js'
import { createGuestRemote, type GuestConnection } from '../guest/guest-remote.js'
import { LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { acceptOn, readSome, shutdownChannel } from '../os/channel.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { userfaultfdFromFd } from '../os/userfaultfd.js'
import { wakeFromFd } from '../os/wake.js'
import type { RamBlock } from '../ram/block.js'
import { createStats } from '../stats.js'
import { trace } from '../trace.js'
import { createStreamReader } from '../wire/reader.js'
import { createBlocktime } from './blocktime.js'
import { type Announcement, createIncoming, type Incoming, type Prepared } from './incoming.js'
import { createRamLoader } from './load.js'
import { createPlacer } from './placer.js'
import { cleanUpRam } from './prepare.js'
import { createReturnPath } from './return-path.js'
import { bitmapsOver, CELL, DESTINATION_STATS, type PageMaps } from './shared.js'
import { INCOMING_STATUS, POSTCOPY_STATE } from './status.js'

/** SHUT values. QEMU knows 0 and not 0; our own source goes on with its guest only when that never ran here. */
const SHUT = { complete: 0, guestNeverRan: 1, guestRan: 2 } as const

export interface StreamThreadData {
  readonly listenFd: number
  readonly wakeFd: number
  readonly cells: Int32Array
  readonly statsMemory: SharedArrayBuffer
}

/** The main thread's answer to an announcement: the guest, and what goes with it. */
export type PrepareAnswer =
  | { readonly error: ErrorMessage }
  | {
      readonly blocks: readonly RamBlock[]
      readonly maps: PageMaps
      readonly guest: GuestConnection
      readonly userfaultfdFd: number | undefined
      /** Wakes the fault thread, where there is one. */
      readonly faultWakeFd: number
    }

/** What this thread tells the main thread. */
export type StreamThreadMessage =
  | { readonly status: string }
  | { readonly connected: number }
  | { readonly announcement: Announcement }
  | { readonly complete: { readonly stoppedAtUs: number | undefined } }
  | { readonly failed: ErrorMessage; readonly stoppedAtUs: number | undefined }

const data = workerData as StreamThreadData
const { cells } = data
const main = parentPort!
const tell = (message: StreamThreadMessage): void => main.postMessage(message)
const stats = createStats(DESTINATION_STATS, data.statsMemory)
const status = createMachine('incoming', INCOMING_STATUS, cells, CELL.status, (from, event, to) => {
  trace('migrate_set_state', 'incoming', from, event, to)
  tell({ status: to })
})
const postcopy = createMachine('postcopy', POSTCOPY_STATE, cells, CELL.postcopy, (from, event, to) =>
  trace('migrate_set_state', 'postcopy', from, event, to),
)

/** Ask the main thread and block until it has answered. */
function askForGuest(announcement: Announcement): Exclude<PrepareAnswer, { error: ErrorMessage }> {
  const before = Atomics.load(cells, CELL.answers)
  tell({ announcement })
  Atomics.wait(cells, CELL.answers, before)
  const answer = receiveMessageOnPort(main)?.message as PrepareAnswer
  if ('error' in answer) throw errorFromMessage(answer.error)
  return answer
}

function receive(channelFd: number): void {
  const buffer = mapAnonymous(LIMITS.receiveBufferBytes)
  const bytes = viewOf(buffer.address, buffer.length)
  const reader = createStreamReader(bytes, (at, max) =>
    Atomics.load(cells, CELL.stopReading) === 1 ? 0 : readSome(channelFd, buffer.address + at, max),
  )

  function prepare(announcement: Announcement): Prepared {
    const { blocks, maps, guest, userfaultfdFd, faultWakeFd } = askForGuest(announcement)
    const received = bitmapsOver(blocks, maps.received)
    const userfaultfd = userfaultfdFd === undefined ? undefined : userfaultfdFromFd(userfaultfdFd)
    const placer = createPlacer({
      buffer: bytes,
      bufferAddress: buffer.address,
      blocks,
      received,
      requested: bitmapsOver(blocks, maps.requested),
      blocktime: createBlocktime(maps.blocktime),
      stats,
      userfaultfd,
    })
    return {
      blocks,
      received,
      guest: createGuestRemote(guest),
      guestCell: guest.cell,
      userfaultfd,
      wake: wakeFromFd(faultWakeFd),
      placer,
      loader: createRamLoader(reader, blocks, placer),
    }
  }

  const openReturnPath = () => createReturnPath(channelFd, cells)
  const incoming = createIncoming({ reader, cells, stats, status, postcopy, openReturnPath, prepare })
  try {
    incoming.run()
    complete(incoming)
  } catch (error) {
    fail(incoming, error)
  } finally {
    incoming.prepared?.placer.close()
    buffer.unmap()
  }
}

function complete(incoming: Incoming): void {
  const { blocks, userfaultfd, wake, guest } = incoming.prepared!
  trace('postcopy_ram_incoming_cleanup_entry')
  // Join the fault thread before the ranges are unregistered: nobody asks for a page any more.
  trace('postcopy_ram_incoming_cleanup_join')
  Atomics.store(cells, CELL.faultThreadQuit, 1)
  wake.signal()
  while (Atomics.load(cells, CELL.faultThreadRuns) === 1) Atomics.wait(cells, CELL.faultThreadRuns, 1, 1000)
  if (userfaultfd !== undefined) {
    cleanUpRam(blocks, userfaultfd)
    confirmLoaded(incoming)
    trace('postcopy_balloon_hold', false)
    guest.holdBalloon(false)
  }
  incoming.relock()
  incoming.returnPath?.send({ name: 'SHUT', value: SHUT.complete })
  // A guest that came by precopy runs only now: until SHUT is on its way the source may still take it back.
  if (!status.is('postcopy-active')) guest.run(wake.fd)
  status.step('eof')
  trace('postcopy_ram_incoming_cleanup_exit')
  tell({ complete: { stoppedAtUs: incoming.stoppedAtUs } })
}

/** The fault thread may have quit before it saw that the devices are loaded. */
function confirmLoaded(incoming: Incoming): void {
  const pong = Atomics.exchange(cells, CELL.pongWhenLoaded, 0)
  if (pong !== 0) incoming.returnPath?.send({ name: 'PONG', value: pong - 1 })
}

function fail(incoming: Incoming, error: unknown): void {
  const cause = causeOf(incoming, error)
  // From here on the guest cannot begin to run; if it has, it is destroyed, and the source is told which.
  const ran = incoming.prepared !== undefined && !incoming.prepared.guest.forbidRun()
  try {
    incoming.returnPath?.send({ name: 'SHUT', value: ran ? SHUT.guestRan : SHUT.guestNeverRan })
  } catch {
    // The connection is what failed: then the source knows already.
  }
  if (status.is('postcopy-active') && cause instanceof ChannelError) status.step('channelLost')
  status.step('fail')
  tell({ failed: errorToMessage(cause), stoppedAtUs: incoming.stoppedAtUs })
}

/** When the guest failed, another thread closed the connection to end this one: then the guest's error is the cause. */
function causeOf(incoming: Incoming, error: unknown): unknown {
  if (!(error instanceof ChannelError) || incoming.prepared === undefined) return error
  try {
    incoming.prepared.guest.loaded()
    return error
  } catch (guestError) {
    return guestError instanceof GuestError || guestError instanceof Error ? guestError : error
  }
}

const listenWake = wakeFromFd(data.wakeFd)
let channelFd = -1
try {
  const accepted = acceptOn(data.listenFd, listenWake.fd)
  if (accepted !== 'woken') {
    channelFd = accepted
    tell({ connected: channelFd })
    status.step('incoming')
    receive(channelFd)
  }
} catch (error) {
  if (status.can('fail')) status.step('fail')
  tell({ failed: errorToMessage(error), stoppedAtUs: undefined })
} finally {
  // The main thread closes it, when no thread can use the number any more.
  if (channelFd >= 0) shutdownChannel(channelFd)
}
