// A migration behind its switch: an outgoing one of a single block, and the other ends of its connections. For tests.

import type { TestContext } from 'node:test'
import { createMachine } from '../machine.js'
import { AHEAD_MS, type OrderName, orderSpec } from '../order/orders.js'
import { closeFd, socketPair } from '../os/channel.js'
import { mapAnonymous } from '../os/mapping.js'
import { createWake } from '../os/wake.js'
import { numberBlocks } from '../ram/block.js'
import { createStats, statsBytes } from '../stats.js'
import type { Origin } from './origin.js'
import { createOutgoing, type OutgoingParts, PUSH_AT_ONCE } from './outgoing.js'
import { SOURCE_STATS } from './report.js'
import { SOURCE_STATUS } from './status.js'

/** Of block `a`; not a whole number of words. */
export const PAGES = 70

export interface Shape {
  readonly pushZeroPages?: boolean
  readonly recoverTimeMs?: number
  /** With a connection of their own for requested pages. */
  readonly preempt?: boolean
  readonly order?: OrderName
  readonly recorded?: Uint32Array
  readonly aheadMs?: number
  /** Bytes a second of what is pushed; 0: no limit. */
  readonly limit?: number
  /** Where a page is that holds something. */
  readonly read?: Origin['read']
}

export function postcopyMigration(
  t: TestContext,
  {
    pushZeroPages = true,
    recoverTimeMs = 5000,
    preempt = false,
    order = 'linear',
    recorded,
    aheadMs = AHEAD_MS,
    limit = 0,
    read,
  }: Shape = {},
) {
  const ram = mapAnonymous(PAGES * 4096)
  const [near, far] = socketPair()
  const [urgentNear, urgentFar] = socketPair()
  const wake = createWake()
  const status = createMachine('source', SOURCE_STATUS, new Int32Array(1), 0)
  for (const event of ['migrate', 'ready', 'switchover', 'packageSent'] as const) status.step(event)
  const parts: OutgoingParts = {
    fd: near,
    urgentFd: preempt ? urgentNear : undefined,
    wake,
    options: {
      ...{ configuration: { machine: 'm' }, ramSectionId: 1, postcopy: 'now', downtimeLimitMs: 0 },
      ...{ maxBandwidth: 0, maxPostcopyBandwidth: limit, setupTimeoutMs: 1000, skip: [] },
      ...{ preempt, urgent: false, realTime: false, order: orderSpec(order) },
      ...{ push: { ...PUSH_AT_ONCE, aheadMs }, recoverTimeMs, silenceTimeoutMs: undefined },
    },
    blocks: numberBlocks([{ name: 'a', length: PAGES * 4096, pageSize: 4096, address: ram.address }]),
    origin: { pushZeroPages, read, release() {} } as unknown as Origin,
    status,
    stats: createStats(SOURCE_STATS, new SharedArrayBuffer(statsBytes(SOURCE_STATS))),
    ...{ silenceMs: 1000, recorded },
    takeOrders: () => [],
  }
  const outgoing = createOutgoing(parts)
  outgoing.commit()
  t.after(() => {
    outgoing.close()
    for (const fd of [near, far, urgentNear, urgentFar]) closeFd(fd)
    wake.close()
    ram.unmap()
  })
  return { outgoing, parts, far, urgentFar }
}
