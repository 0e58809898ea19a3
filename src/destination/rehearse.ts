// A small migration to nobody, while nobody has connected yet. Destination thread.
//
// JavaScript that runs often is compiled while it runs, and until then it is slow: a guest that has just come would wait
// the longer for each of its first thousands of pages. Here the same code takes in what the same thread has put into the
// other end of the connection: RAM of its own comes by precopy, is discarded, and comes again page by page. Nobody touches
// that RAM: the faults are made up, and no thread can ever be stalled on it.

import type { GuestRemote } from '../guest/guest-remote.js'
import { LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { lockedMemoryFlags, mapAnonymous, viewOf } from '../os/mapping.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import { openUserfaultfd, userfaultfdFromFd } from '../os/userfaultfd.js'
import type { Wake } from '../os/wake.js'
import { numberBlocks, TARGET_PAGE_BYTES } from '../ram/block.js'
import { createStats, statsBytes } from '../stats.js'
import { tracing } from '../trace.js'
import { createStreamReader } from '../wire/reader.js'
import { createBlocktime } from './blocktime.js'
import { createFaults } from './faults.js'
import { createIncoming, type Prepared } from './incoming.js'
import { createIntake } from './intake.js'
import { createRamLoader } from './load.js'
import { createPlacer } from './placer.js'
import { BLOCK_NAME, createRehearsalSource } from './rehearsal-source.js'
import { createReturnPath } from './return-path.js'
import { allocatePageMaps, bitmapsOver, CELL, DESTINATION_STATS } from './shared.js'
import { INCOMING_STATUS, POSTCOPY_STATE } from './status.js'

/**
 * Pages of each rehearsal. In the first one the compiler believes that there is one of everything, and makes code for just
 * that; in the next ones it learns that there are others, and makes code that fits the real ones, too.
 */
const PAGES = [256, 256, 4096]
/** Nothing here waits for another thread. */
const PATIENCE_MS = 1000

/**
 * True when it went to its end. It is given up as soon as somebody connects to `listenFd`, for whom it would be a delay, or
 * `wake` is signalled, which it leaves so; and where this host cannot do it, which the real migration will say better.
 */
export function rehearse(listenFd: number, wake: Wake): boolean {
  // It would be in the way of who wants to see the real one, and of memory that is locked: it would have to be unlocked.
  if (tracing() || lockedMemoryFlags() !== 0) return false
  return PAGES.every((pages) => rehearseOnce(pages, listenFd, wake))
}

function rehearseOnce(pages: number, listenFd: number, wake: Wake): boolean {
  const undo: (() => void)[] = []
  try {
    takeIn(pages, listenFd, wake, undo)
    return true
  } catch {
    return false
  } finally {
    for (const step of undo.reverse()) step()
  }
}

function takeIn(pages: number, listenFd: number, wake: Wake, undo: (() => void)[]): void {
  const length = pages * TARGET_PAGE_BYTES
  const userfaultfd = openUserfaultfd({ features: ['THREAD_ID'] })
  undo.push(userfaultfd.close)
  const source = createRehearsalSource(length)
  undo.push(source.close)
  const ram = mapAnonymous(length)
  undo.push(ram.unmap)
  const buffer = mapAnonymous(LIMITS.receiveBufferBytes)
  undo.push(buffer.unmap)
  const bytes = viewOf(buffer.address, buffer.length)
  const stats = createStats(DESTINATION_STATS, new SharedArrayBuffer(statsBytes(DESTINATION_STATS)))
  const cells = new Int32Array(new SharedArrayBuffer(CELL.count * 4))
  const status = createMachine('rehearsal', INCOMING_STATUS, cells, CELL.status)
  const postcopy = createMachine('rehearsal', POSTCOPY_STATE, cells, CELL.postcopy)
  const returnPath = createReturnPath(source.channelFd)
  const intake = createIntake({
    fd: source.channelFd,
    bufferAddress: buffer.address,
    wake: { ...wake, drain: () => true },
    onWake: () => true,
    patienceMs: PATIENCE_MS,
  })
  const knock = createPoll(1)
  knock.set(0, listenFd, POLL_EVENTS.in)
  intake.serveUrgent(source.hearFd, () => {
    if (knock.wait(0) > 0) throw new Error('somebody has connected')
    source.hear()
  })
  const reader = createStreamReader(bytes, intake.pull)

  function prepare(): Prepared {
    // As the real ones come, from the main thread: compiled code fits objects of the same making only.
    const blocks = structuredClone(
      numberBlocks([{ name: BLOCK_NAME, length, pageSize: TARGET_PAGE_BYTES, address: ram.address }]),
    )
    const maps = allocatePageMaps(blocks)
    const parts = {
      blocks,
      received: bitmapsOver(blocks, maps.received),
      requested: bitmapsOver(blocks, maps.requested),
      blocktime: createBlocktime(maps.blocktime),
      stats,
      userfaultfd: userfaultfdFromFd(userfaultfd.fd),
    }
    const placer = createPlacer({ ...parts, buffer: bytes, bufferAddress: buffer.address })
    const kernel = userfaultfdFromFd(source.faultsFd)
    const faults = createFaults({
      ...parts,
      userfaultfd: kernel,
      requests: { over: returnPath },
    })
    intake.serveFaults(kernel.fd, faults.serve)
    undo.push(placer.close)
    return {
      ...parts,
      placer,
      guest: stagedGuest(() => source.run(ram.address)),
      guestCell: new Int32Array(1),
      loader: createRamLoader(reader, blocks, placer, intake.look),
      askAgain: faults.askAgain,
    }
  }

  const incoming = createIncoming({
    ...{ reader, stats, status, postcopy, prepare },
    wakeFd: wake.fd,
    openReturnPath: () => returnPath,
  })
  status.step('incoming')
  incoming.run()
}

function stagedGuest(run: () => void): GuestRemote {
  const never = (): never => {
    throw new Error('the guest of the rehearsal cannot be stopped')
  }
  return {
    ...{ stop: never, save: never, stopAndSave: never, resume: never, forbidRun: never },
    load() {},
    loaded: () => true,
    run,
    holdBalloon() {},
  }
}
