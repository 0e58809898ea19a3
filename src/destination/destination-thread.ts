// The destination thread: accepts the connection, takes the stream in, and serves the guest's faults meanwhile, to the end
// or the failure of the stream. Blocks in accept, in poll, in placement, and while the main thread makes the guest.

import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import {
  ChannelError,
  type ErrorMessage,
  errorFromMessage,
  errorToMessage,
  GuestError,
  ProtocolError,
} from '../errors.js'
import { CELL as GUEST_CELL, OUTCOME } from '../guest/guest-messages.js'
import { createGuestRemote, type GuestConnection } from '../guest/guest-remote.js'
import { LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { acceptOn, roundTripUs, shutdownChannel } from '../os/channel.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { userfaultfdFromFd } from '../os/userfaultfd.js'
import { wakeFromFd } from '../os/wake.js'
import type { RamBlock } from '../ram/block.js'
import { createStats } from '../stats.js'
import { sayEnded } from '../thread.js'
import { trace } from '../trace.js'
import { createStreamReader } from '../wire/reader.js'
import { LONG_ROUND_TRIP_US, urgentValue } from '../wire/urgent.js'
import { createBlocktime } from './blocktime.js'
import { createFaults } from './faults.js'
import { type Announcement, createIncoming, type Incoming, type Prepared } from './incoming.js'
import { createIntake } from './intake.js'
import { createRamLoader } from './load.js'
import { createPlacer } from './placer.js'
import { cleanUpRam } from './prepare.js'
import { rehearse } from './rehearse.js'
import { createReturnPath, type ReturnPath } from './return-path.js'
import { bitmapsOver, CELL, DESTINATION_STATS, type PageMaps } from './shared.js'
import { INCOMING_STATUS, POSTCOPY_STATE } from './status.js'
import { createUrgentChannel, type UrgentParts } from './urgent-channel.js'

/** SHUT values. QEMU knows 0 and not 0; our own source goes on with its guest only when that never ran here. */
const SHUT = { complete: 0, guestNeverRan: 1, guestRan: 2 } as const

/** How long nothing may come over the second connection when the first has ended, and pages are missing, ms. */
const LAST_PAGES_MS = 10_000

/** How long a source may take to say what it is, ms: whoever connects and says nothing is none. */
const FIRST_WORDS_MS = 30_000

export interface DestinationThreadData {
  readonly listenFd: number
  readonly wakeFd: number
  readonly cells: Int32Array
  readonly statsMemory: SharedArrayBuffer
  /** When the connection is lost after the switch, wait this long for the source to come back, ms; 0: not at all. */
  readonly recoverTimeMs: number
  /** A source that is a QEMU with postcopy-preempt opens a second connection, and does not say so. */
  readonly preempt: boolean
}

/** The main thread listens again. */
export interface ListenAnswer {
  readonly listenFd: number
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
  /** The second connection, for requested pages. */
  | { readonly joined: number }
  /** Nobody else is to connect. */
  | { readonly listensNoMore: true }
  /** The connection is lost: listen again. */
  | { readonly paused: ErrorMessage }
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

let channelFd = -1

/** Ask the main thread and block until it has answered. */
function askForGuest(announcement: Announcement): Exclude<PrepareAnswer, { error: ErrorMessage }> {
  const before = Atomics.load(cells, CELL.answers)
  tell({ announcement })
  Atomics.wait(cells, CELL.answers, before)
  const answer = receiveMessageOnPort(main)?.message as PrepareAnswer
  if ('error' in answer) throw errorFromMessage(answer.error)
  return answer
}

function receive(): void {
  const buffer = mapAnonymous(LIMITS.receiveBufferBytes)
  const bytes = viewOf(buffer.address, buffer.length)
  const returnPath = createReturnPath(channelFd)
  const intake = createIntake({
    fd: channelFd,
    bufferAddress: buffer.address,
    wake,
    onWake,
    patienceMs: FIRST_WORDS_MS,
  })
  const reader = createStreamReader(bytes, intake.pull)
  /** Where requests go: over the second connection, where that was agreed on. */
  const requests: { over: Pick<ReturnPath, 'requestPage'> } = { over: returnPath }
  let makeUrgentLoader: UrgentParts['makeLoader'] | undefined

  const urgent = createUrgentChannel({
    listenFd: data.listenFd,
    intake,
    stats,
    isPostcopy: () => postcopy.is('running'),
    flushFirst: () => incoming.prepared?.placer.flush(),
    makeLoader(...parts) {
      if (makeUrgentLoader !== undefined) return makeUrgentLoader(...parts)
      throw new ProtocolError('a second connection before the list of RAM blocks', {
        ...{ offset: 0, record: 'ram page record' },
      })
    },
    onOpen(fd, token) {
      tell({ joined: fd })
      if (token === undefined) return
      incoming.prepared?.placer.takeRepeats()
      requests.over = requestsOver(createReturnPath(fd), roundTripUs(fd) >= LONG_ROUND_TRIP_US)
      returnPath.send({ name: 'PONG', value: urgentValue('here', token) })
    },
    onEnd() {
      requests.over = returnPath
    },
  })
  if (data.preempt) urgent.expect()

  function prepare(announcement: Announcement): Prepared {
    intake.trust()
    const { blocks, maps, guest, userfaultfdFd } = askForGuest(announcement)
    const received = bitmapsOver(blocks, maps.received)
    const requested = bitmapsOver(blocks, maps.requested)
    const blocktime = createBlocktime(maps.blocktime)
    const userfaultfd = userfaultfdFd === undefined ? undefined : userfaultfdFromFd(userfaultfdFd)
    const common = {
      blocks,
      received,
      requested,
      blocktime,
      stats,
      userfaultfd,
    }
    const placer = createPlacer({ ...common, buffer: bytes, bufferAddress: buffer.address })
    makeUrgentLoader = (reader, buffer, bufferAddress) => {
      const placer = createPlacer({ ...common, buffer, bufferAddress })
      placer.enterPostcopy()
      placer.takeRepeats()
      return { placer, loader: createRamLoader(reader, blocks, placer) }
    }
    if (!urgent.settle()) tell({ listensNoMore: true })
    let askAgain = (): void => {}
    if (userfaultfd !== undefined) {
      const faults = createFaults({ ...common, userfaultfd, requests })
      trace('postcopy_ram_fault_thread_entry')
      intake.serveFaults(userfaultfd.fd, faults.serve)
      askAgain = faults.askAgain
    }
    return {
      blocks,
      received,
      guest: createGuestRemote(guest),
      guestCell: guest.cell,
      userfaultfd,
      placer,
      loader: createRamLoader(reader, blocks, placer, intake.look),
      askAgain,
    }
  }

  /** Where the way is long, over the first connection as well: seldom is a request lost on both. */
  function requestsOver(own: ReturnPath, alsoFirst: boolean): Pick<ReturnPath, 'requestPage'> {
    if (!alsoFirst) return own
    return {
      requestPage(block, start) {
        own.requestPage(block, start)
        returnPath.requestPage(block, start)
      },
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
    expectUrgent: urgent.expect,
    waitForUrgent: (whole) => intake.waitForUrgent(whole, LAST_PAGES_MS),
  })

  /** The main thread wants an end, or the guest thread has loaded its devices, or could not. */
  function onWake(): boolean {
    if (Atomics.load(cells, CELL.stopReading) === 1) return true
    const guestCell = incoming.prepared?.guestCell
    if (guestCell === undefined) return false
    const loaded = Atomics.load(guestCell, GUEST_CELL.loaded)
    if (loaded === OUTCOME.done) confirmLoaded(incoming)
    return loaded === OUTCOME.failed
  }

  /** Takes the stream in, over as many connections as it takes. */
  function takeIn(): void {
    for (let part = incoming.run; ; part = incoming.goOn) {
      try {
        part()
        return
      } catch (error) {
        if (!canRecover(error)) throw error
        waitForSource(error as ChannelError)
      }
    }
  }

  /** The guest's threads stay where they are, stalled on absent pages alone; nothing is torn down. */
  function waitForSource(error: ChannelError): void {
    incoming.prepared!.placer.abandon()
    urgent.abandon()
    shutdownChannel(channelFd) // it may be the other connection that is lost: the source is to know
    requests.over = returnPath
    status.step('channelLost')
    tell({ paused: errorToMessage(error) })
    channelFd = acceptAgain(listenAgain())
    returnPath.reconnect(channelFd)
    intake.reconnect(channelFd)
    tell({ connected: channelFd })
    reader.restart()
    status.step('channelUp')
  }

  /** The descriptor on which the main thread listens again. */
  function listenAgain(): number {
    for (;;) {
      wake.wait()
      goOnOrGiveUp()
      const answer = receiveMessageOnPort(main)?.message as ListenAnswer | undefined
      if (answer !== undefined) return answer.listenFd
    }
  }

  function acceptAgain(listenFd: number): number {
    for (;;) {
      const fd = acceptOn(listenFd, wake.fd, data.recoverTimeMs)
      if (fd !== 'woken') return fd
      wake.drain()
      goOnOrGiveUp()
    }
  }

  /** What woke this thread may be no more than the guest's word that its devices are loaded. */
  function goOnOrGiveUp(): void {
    if (onWake()) throw new ChannelError('given up while the connection was lost')
  }

  try {
    takeIn()
    complete(incoming)
  } catch (error) {
    fail(incoming, error)
  } finally {
    trace('postcopy_ram_fault_thread_exit')
    incoming.prepared?.placer.close()
    urgent.close()
    buffer.unmap()
  }
}

const canRecover = (error: unknown): boolean =>
  error instanceof ChannelError &&
  data.recoverTimeMs > 0 &&
  Atomics.load(cells, CELL.stopReading) === 0 &&
  postcopy.is('running') &&
  status.is('postcopy-active', 'postcopy-recover')

/** On a connection that is lost the answer is not missed: who asks later hears that the guest runs. */
function confirmLoaded(incoming: Incoming): void {
  try {
    incoming.confirmLoaded()
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
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
  sayComplete(incoming)
  // A guest that came by precopy runs only now: until SHUT is on its way the source may still take it back.
  if (!status.is('postcopy-active')) guest.run()
  status.step('eof')
  trace('postcopy_ram_incoming_cleanup_exit')
  tell({ complete: { stoppedAtUs: incoming.stoppedAtUs } })
}

/** After the switch a guest that has all of its RAM goes on, whether the source hears of it or not. */
function sayComplete(incoming: Incoming): void {
  try {
    incoming.returnPath?.send({ name: 'SHUT', value: SHUT.complete })
  } catch (error) {
    if (!(error instanceof ChannelError && status.is('postcopy-active'))) throw error
  }
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
  if (status.can('channelLost') && cause instanceof ChannelError) status.step('channelLost')
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

try {
  rehearse(data.listenFd, wake)
  const accepted = acceptOn(data.listenFd, wake.fd)
  if (accepted !== 'woken') {
    channelFd = accepted
    tell({ connected: channelFd })
    status.step('incoming')
    receive()
  }
} catch (error) {
  if (status.can('fail')) status.step('fail')
  tell({ failed: errorToMessage(error), stoppedAtUs: undefined })
} finally {
  // The main thread closes it: it may be about to shut it down, and must not meet another file's number.
  if (channelFd >= 0) shutdownChannel(channelFd)
  sayEnded()
}
