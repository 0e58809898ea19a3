// The destination thread: accepts the connection, takes the stream in, and serves the guest's faults meanwhile, to the end
// or the failure of the stream. Blocks in accept, in poll, in placement, and while the main thread makes the guest.

import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { ChannelError, type ErrorMessage, errorFromMessage, errorToMessage, GuestError } from '../errors.js'
import { CELL as GUEST_CELL, OUTCOME } from '../guest/guest-messages.js'
import { createGuestRemote, type GuestConnection } from '../guest/guest-remote.js'
import { LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { acceptOn, shutdownChannel } from '../os/channel.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { userfaultfdFromFd } from '../os/userfaultfd.js'
import { wakeFromFd } from '../os/wake.js'
import type { RamBlock } from '../ram/block.js'
import { createStats } from '../stats.js'
import { sayEnded } from '../thread.js'
import { trace } from '../trace.js'
import { createStreamReader } from '../wire/reader.js'
import { createBlocktime } from './blocktime.js'
import { createFaults } from './faults.js'
import { type Announcement, createIncoming, type Incoming, type Prepared } from './incoming.js'
import { createIntake } from './intake.js'
import { createRamLoader } from './load.js'
import { createPlacer } from './placer.js'
import { cleanUpRam } from './prepare.js'
import { createReturnPath } from './return-path.js'
import { bitmapsOver, CELL, DESTINATION_STATS, type PageMaps } from './shared.js'
import { INCOMING_STATUS, POSTCOPY_STATE } from './status.js'

/** SHUT values. QEMU knows 0 and not 0; our own source goes on with its guest only when that never ran here. */
const SHUT = { complete: 0, guestNeverRan: 1, guestRan: 2 } as const

export interface DestinationThreadData {
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
    }

/** What this thread tells the main thread. */
export type DestinationThreadMessage =
  | { readonly status: string }
  | { readonly connected: number }
  | { readonly announcement: Announcement }
  | { readonly complete: { readonly stoppedAtUs: number | undefined } }
  | { readonly failed: ErrorMessage; readonly stoppedAtUs: number | undefined }

const data = workerData as DestinationThreadData
const { cells } = data
const wake = wakeFromFd(data.wakeFd)
const main = parentPort!
const tell = (message: DestinationThreadMessage): void => main.postMessage(message)
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
  const returnPath = createReturnPath(channelFd)
  const intake = createIntake({ fd: channelFd, bufferAddress: buffer.address, wake, onWake })
  const reader = createStreamReader(bytes, intake.pull)

  function prepare(announcement: Announcement): Prepared {
    const { blocks, maps, guest, userfaultfdFd } = askForGuest(announcement)
    const received = bitmapsOver(blocks, maps.received)
    const requested = bitmapsOver(blocks, maps.requested)
    const blocktime = createBlocktime(maps.blocktime)
    const userfaultfd = userfaultfdFd === undefined ? undefined : userfaultfdFromFd(userfaultfdFd)
    const placer = createPlacer({
      buffer: bytes,
      bufferAddress: buffer.address,
      blocks,
      received,
      requested,
      blocktime,
      stats,
      userfaultfd,
    })
    if (userfaultfd !== undefined) {
      const ask = (block: RamBlock, start: number): void => {
        returnPath.requestPage(block, start)
        stats.requests++
      }
      const faults = createFaults({ blocks, received, requested, blocktime, userfaultfd, ask })
      trace('postcopy_ram_fault_thread_entry')
      intake.serveFaults(userfaultfd.fd, faults.serve)
    }
    return {
      blocks,
      received,
      guest: createGuestRemote(guest),
      guestCell: guest.cell,
      userfaultfd,
      placer,
      loader: createRamLoader(reader, blocks, placer, intake.look),
    }
  }

  const openReturnPath = () => returnPath
  const incoming = createIncoming({
    reader,
    wakeFd: wake.fd,
    stats,
    status,
    postcopy,
    openReturnPath,
    prepare,
  })

  /** The main thread wants an end, or the guest thread has loaded its devices, or could not. */
  function onWake(): boolean {
    if (Atomics.load(cells, CELL.stopReading) === 1) return true
    const guestCell = incoming.prepared?.guestCell
    if (guestCell === undefined) return false
    const loaded = Atomics.load(guestCell, GUEST_CELL.loaded)
    if (loaded === OUTCOME.done) incoming.confirmLoaded()
    return loaded === OUTCOME.failed
  }

  try {
    incoming.run()
    complete(incoming)
  } catch (error) {
    fail(incoming, error)
  } finally {
    trace('postcopy_ram_fault_thread_exit')
    incoming.prepared?.placer.close()
    buffer.unmap()
  }
}

function complete(incoming: Incoming): void {
  const { blocks, userfaultfd, guest } = incoming.prepared!
  trace('postcopy_ram_incoming_cleanup_entry')
  if (userfaultfd !== undefined) {
    trace('postcopy_ram_fault_thread_quit')
    cleanUpRam(blocks, userfaultfd)
    trace('postcopy_balloon_hold', false)
    guest.holdBalloon(false)
  }
  incoming.relock()
  incoming.returnPath?.send({ name: 'SHUT', value: SHUT.complete })
  // A guest that came by precopy runs only now: until SHUT is on its way the source may still take it back.
  if (!status.is('postcopy-active')) guest.run()
  status.step('eof')
  trace('postcopy_ram_incoming_cleanup_exit')
  tell({ complete: { stoppedAtUs: incoming.stoppedAtUs } })
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

/** When the guest failed, another thread ended the reading: then the guest's error is the cause. */
function causeOf(incoming: Incoming, error: unknown): unknown {
  if (!(error instanceof ChannelError) || incoming.prepared === undefined) return error
  try {
    incoming.prepared.guest.loaded()
    return error
  } catch (guestError) {
    return guestError instanceof GuestError || guestError instanceof Error ? guestError : error
  }
}

let channelFd = -1
try {
  const accepted = acceptOn(data.listenFd, wake.fd)
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
  // The main thread closes it: it may be about to shut it down, and must not meet another file's number.
  if (channelFd >= 0) shutdownChannel(channelFd)
  sayEnded()
}
