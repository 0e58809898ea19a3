// A small migration to nobody, some times over, before the real one. Source thread.
//
// JavaScript that runs for the first time is compiled while it runs, and what has run only once is still interpreted. The steps
// of the switch run just once, while the guest stands still: without a rehearsal they take ten times as long. Pages of a block
// of its own go over a pair of sockets; the answers have been put in beforehand.

import { LIMITS } from '../limits.js'
import { createMachine } from '../machine.js'
import { closeFd, sendAll, socketPair } from '../os/channel.js'
import { mapAnonymous, memset } from '../os/mapping.js'
import { createWake } from '../os/wake.js'
import { numberBlocks, TARGET_PAGE_BYTES } from '../ram/block.js'
import { createZeroTest } from '../ram/zero.js'
import { createStats, statsBytes } from '../stats.js'
import { tracing } from '../trace.js'
import { encodeReturnMessage, type ReturnMessage } from '../wire/messages.js'
import type { Origin } from './origin.js'
import { createOutgoing, type OutgoingOptions, PING, PUSH_AT_ONCE, sendPrefix } from './outgoing.js'
import { runPrecopy } from './precopy.js'
import { pushAhead, pushRemaining } from './push.js'
import { SOURCE_STATS } from './report.js'
import { SOURCE_STATUS } from './status.js'
import { switchToPostcopy } from './switchover.js'

/** Few enough that all of it fits into a socket's buffer: nobody reads. */
const PAGES = 16
const BLOCK = 'rehearsal'
/** A block of which nothing is sent: loops over the bits of a large RAM are compiled only if they run over many. */
const LARGE = { name: 'rehearsal, large', length: 1024 ** 3 }
const RECORDED = Uint32Array.of(1, 3, 9, 12)

const pong = (value: number): ReturnMessage => ({ name: 'PONG', value })
const ANSWERS: readonly ReturnMessage[] = [
  ...[PING.start, PING.ready, PING.earlyDiscards, PING.discarded, PING.loaded].map(pong),
  { name: 'REQ_PAGES_ID', start: 4 * TARGET_PAGE_BYTES, length: TARGET_PAGE_BYTES, block: BLOCK },
  { name: 'REQ_PAGES', start: 6 * TARGET_PAGE_BYTES, length: TARGET_PAGE_BYTES },
]

/** The first takes 15 ms, all others together as long. More would have V8 optimize for this, and think again while a guest waits. */
const TIMES = 12

export function rehearse(options: OutgoingOptions): void {
  if (tracing()) return // it would be in the way of who wants to see the real one
  for (let i = 0; i < TIMES; i++) rehearseOnce(options)
}

function rehearseOnce(options: OutgoingOptions): void {
  const ram = mapAnonymous(PAGES * TARGET_PAGE_BYTES)
  const [near, far] = socketPair()
  const [urgentNear, urgentFar] = options.preempt ? socketPair() : []
  const wake = createWake()
  memset(ram.address, 1, ram.length / 2) // the other half is zero
  const blocks = numberBlocks([
    { name: BLOCK, length: ram.length, pageSize: TARGET_PAGE_BYTES, address: ram.address },
    { ...LARGE, pageSize: TARGET_PAGE_BYTES, address: ram.address },
  ])
  const status = createMachine('rehearsal', SOURCE_STATUS, new Int32Array(1), 0)
  const o = createOutgoing({
    fd: near,
    urgentFd: urgentNear,
    wake,
    options: {
      ...options,
      postcopy: 'now',
      skip: [LARGE.name],
      urgent: false,
      maxPostcopyBandwidth: 0,
      push: PUSH_AT_ONCE,
    },
    blocks,
    origin: stagedOrigin(createZeroTest(blocks[0]!)),
    status,
    stats: createStats(SOURCE_STATS, new SharedArrayBuffer(statsBytes(SOURCE_STATS))),
    silenceMs: LIMITS.silenceMs,
    recorded: RECORDED,
    takeOrders: () => [],
  })
  try {
    for (const answer of ANSWERS) sendAll(far, encodeReturnMessage(answer))
    status.step('migrate')
    sendPrefix(o)
    status.step('ready')
    runPrecopy(o)
    pushAhead(o)
    switchToPostcopy(o, 'at once')
    pushRemaining(o)
  } finally {
    o.close()
    for (const fd of [near, far, urgentNear, urgentFar]) if (fd !== undefined) closeFd(fd)
    wake.close()
    ram.unmap()
  }
}

function stagedOrigin(isZero: (page: number) => boolean): Origin {
  const stoppedAt = { monotonicUs: 0, realtimeUs: 0 }
  return {
    begin: (populated) => populated[0]!.setRange(0, PAGES),
    collectWritten: (written) => written[0]!.set(1),
    read: ({ address }, page) => ({
      address: isZero(page) ? 0 : address + page * TARGET_PAGE_BYTES,
      pages: 1,
      lasting: false,
    }),
    release() {},
    stopAndSave: () => ({ stoppedAt, devices: new Uint8Array(1024) }),
    resume() {},
    runs: true,
    words: { ifKept: '', ifGone: '' },
    pushZeroPages: true,
    saysStopTime: true,
    close() {},
  }
}
