// The fault thread: hears of every guest thread that stalls on an absent page, and asks the source for that page.
// Blocks in poll on the userfaultfd and its wake descriptor, and in sending to the return path.

import { parentPort, workerData } from 'node:worker_threads'
import { ChannelError, errorToMessage, GuestError } from '../errors.js'
import { CELL as GUEST_CELL, OUTCOME } from '../guest/guest-messages.js'
import { shutdownChannel, shutdownReceiving } from '../os/channel.js'
import { monotonicUs } from '../os/clock.js'
import { createPoll, POLL_EVENTS } from '../os/poll.js'
import { userfaultfdFromFd } from '../os/userfaultfd.js'
import { createEventBatch } from '../os/userfaultfd-events.js'
import { wakeFromFd } from '../os/wake.js'
import { blockAt, type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import { createStats } from '../stats.js'
import { trace, tracing } from '../trace.js'
import { createBlocktime } from './blocktime.js'
import { createReturnPath } from './return-path.js'
import { bitmapsOver, CELL, DESTINATION_STATS, type PageMaps } from './shared.js'

export interface FaultThreadData {
  readonly channelFd: number
  readonly userfaultfdFd: number
  readonly wakeFd: number
  readonly cells: Int32Array
  readonly guestCell: Int32Array
  readonly statsMemory: SharedArrayBuffer
  readonly blocks: readonly RamBlock[]
  readonly maps: PageMaps
}

const data = workerData as FaultThreadData
const { cells, blocks } = data
const userfaultfd = userfaultfdFromFd(data.userfaultfdFd)
const wake = wakeFromFd(data.wakeFd)
const events = createEventBatch()
const received = bitmapsOver(blocks, data.maps.received)
const requested = bitmapsOver(blocks, data.maps.requested)
const blocktime = createBlocktime(data.maps.blocktime)
const stats = createStats(DESTINATION_STATS, data.statsMemory)
const returnPath = createReturnPath(data.channelFd, cells)
let lastRequested: RamBlock | undefined
let channelLost = false

function serve(): void {
  trace('postcopy_ram_fault_thread_entry')
  const poll = createPoll(2)
  poll.set(0, userfaultfd.fd, POLL_EVENTS.in)
  poll.set(1, wake.fd, POLL_EVENTS.in)
  for (;;) {
    poll.wait(-1)
    if (poll.readable(1)) {
      wake.drain()
      if (Atomics.load(cells, CELL.faultThreadQuit) === 1) {
        trace('postcopy_ram_fault_thread_quit')
        return
      }
      confirmLoaded()
    }
    if (poll.readable(0)) {
      const count = userfaultfd.readEvents(events) // none: another read was faster, or the waiter was let go
      for (let i = 0; i < count; i++) handle(i)
    }
  }
}

function handle(event: number): void {
  // Only page faults were asked for; anything else the kernel may tell is no reason to stop serving them.
  if (events.kind(event) !== 'pagefault') return
  const address = events.address(event)
  const block = blockAt(blocks, address)
  if (block === undefined)
    throw new GuestError(`page fault at 0x${address.toString(16)}, outside of every RAM block`)
  const offset = Math.floor((address - block.address) / block.pageSize) * block.pageSize
  const page = offset / TARGET_PAGE_BYTES
  const threadId = events.threadId(event)
  if (tracing()) trace('postcopy_ram_fault_thread_request', address, block.name, offset, threadId)

  blocktime.begin(threadId, block.firstPage + page, monotonicUs())
  // Before the look at `received`: the page may be placed between the two, and whoever comes second ends the wait.
  const asked = requested[block.index]!.get(page)
  requested[block.index]!.set(page)
  if (received[block.index]!.get(page)) {
    blocktime.end(block.firstPage + page, block.ratio, monotonicUs())
    userfaultfd.wake(block.address + offset, block.pageSize)
  } else if (!asked) {
    request(block, offset)
  }
}

function request(block: RamBlock, start: number): void {
  if (channelLost) return
  const length = block.pageSize
  try {
    // The source remembers the block: it is named only when it changes.
    if (block === lastRequested) returnPath.requestPages(start, length)
    else returnPath.send({ name: 'REQ_PAGES_ID', start, length, block: block.name })
    lastRequested = block
    stats.requests++
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
    // The stream thread sees the same loss and decides; the guest stays stalled, and what it waits for stays noted.
    channelLost = true
  }
}

/** The guest thread has loaded its devices (or could not): tell the source, or end the stream. */
function confirmLoaded(): void {
  const loaded = Atomics.load(data.guestCell, GUEST_CELL.loaded)
  if (loaded === OUTCOME.failed) {
    // Not both directions: the stream thread has to tell the source that the guest never ran here.
    Atomics.store(cells, CELL.stopReading, 1)
    shutdownReceiving(data.channelFd)
  }
  if (loaded !== OUTCOME.done) return
  const pong = Atomics.exchange(cells, CELL.pongWhenLoaded, 0)
  if (pong === 0 || channelLost) return
  try {
    returnPath.send({ name: 'PONG', value: pong - 1 })
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
    channelLost = true
  }
}

Atomics.store(cells, CELL.faultThreadRuns, 1)
parentPort!.postMessage('ready')
try {
  serve()
} catch (error) {
  parentPort!.postMessage({ error: errorToMessage(error) })
  shutdownChannel(data.channelFd)
} finally {
  trace('postcopy_ram_fault_thread_exit')
  Atomics.store(cells, CELL.faultThreadRuns, 0)
  Atomics.notify(cells, CELL.faultThreadRuns)
}
