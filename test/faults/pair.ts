// Our own source and destination with a fault proxy between them, and a guest that knows what its RAM must hold.

import assert from 'node:assert/strict'
import type { PatternOptions } from '../../src/guest/pattern.js'
import {
  type GuestHandle,
  type Incoming,
  type MigrateOptions,
  type Migration,
  migrate,
  receive,
  startGuest,
} from '../../src/index.js'
import { assertMoved, assertSoundAndEnd, type Outcome, outcomeOf, startPattern } from '../engine/guests.js'
import type { FaultPlan } from './plan.js'
import { type FaultProxy, startFaultProxy } from './proxy.js'

export interface Pair {
  readonly incoming: Incoming
  readonly migration: Migration
  readonly proxy: FaultProxy
}

export interface PairOptions extends Omit<MigrateOptions, 'to' | 'recover'> {
  /** Both ends recover from lost connections, where they were. For addresses that stay: unix sockets. */
  readonly recovers?: boolean
  readonly plan?: FaultPlan
  /** Unless it is true, all goes over one connection: then what happens to which record is known. */
  readonly urgentChannel?: boolean
  /** Where the proxy and the destination listen; any ports of this host unless given. */
  readonly listen?: { readonly proxy: string; readonly destination: string }
}

const ANY_PORT = 'tcp:127.0.0.1:0'

export async function beginThroughProxy(guest: GuestHandle, options: PairOptions = {}): Promise<Pair> {
  const {
    plan = [],
    listen = { proxy: ANY_PORT, destination: ANY_PORT },
    recovers = false,
    urgentChannel = false,
    ...rest
  } = options
  const incoming = receive({
    listen: listen.destination,
    ...(recovers ? { recover: listen.destination } : {}),
    guest: (machine, blocks) => startGuest({ module: 'pattern', incoming: { machine, blocks } }),
  })
  const proxy = await startFaultProxy({ listen: listen.proxy, to: () => incoming.uri, plan })
  const to = { to: proxy.uri, ...(recovers ? { recover: proxy.uri } : {}) }
  return { incoming, proxy, migration: migrate(guest, { ...to, urgentChannel, ...rest }) }
}

export async function endOf({ incoming, migration, proxy }: Pair): Promise<Outcome> {
  try {
    return await outcomeOf({ incoming, migration })
  } finally {
    await proxy.close()
  }
}

export interface CutAfterRun {
  /** Faults of which some end the connection after the package. */
  readonly plan: FaultPlan
  readonly guest?: Partial<PatternOptions>
  readonly options?: Omit<PairOptions, 'plan'>
  /** Called each time the connection has been broken, until that is no more so; starts the recovery, and resolves. */
  readonly recover: (pair: Pair, cuts: number) => Promise<void>
}

/**
 * A guest goes over by postcopy, its connections break as `plan` says, `recover` mends them. At the end RAM is what the
 * guest wrote, its sequence has no gap, and every page was placed once.
 */
export async function cutAfterRun({
  plan,
  guest: guestOptions,
  options,
  recover,
}: CutAfterRun): Promise<Outcome> {
  const guest = await startPattern(guestOptions)
  const pair = await beginThroughProxy(guest, { postcopy: 'now', ...options, plan })
  const cuts = plan.filter(({ action }) => action.do === 'cut' || action.do === 'truncate').length
  const over = Promise.race([pair.incoming.done, pair.migration.done]).then(() => 'over' as const)
  for (let cut = 1; cut <= cuts; cut++) {
    if ((await Promise.race([pair.proxy.happened(cut), over])) === 'over') break
    await recover(pair, cut)
  }
  const outcome = await endOf(pair)
  const moved = assertMoved(outcome)
  await guest.destroy()
  await assertSoundAndEnd(moved)
  pair.proxy.pages.assertEachPageOnce()
  // An attempt to reconnect that came too early is a connection as well, on which nothing can happen.
  const fewest = options?.recovers ? Math.min(1, plan.length) : plan.length
  assert(pair.proxy.fired.length >= fewest, 'not every fault happened')
  return outcome
}
