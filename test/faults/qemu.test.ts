// Real QEMU pairs through the fault proxy: cut after RUN, and recovered by QEMU's own migrate-recover, several times in a
// row. It proves the proxy on connections that recover, and the ledger of pages on somebody else's protocol.

import assert from 'node:assert/strict'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { ChannelError, GuestError } from '../../src/errors.js'
import { checkRam, romRange } from '../../src/guest/rom.js'
import type { Qemu } from '../../src/qemu/launch.js'
import { queryMigration, waitForMigration } from '../../src/qemu/migration.js'
import { createRandom, SEEDS } from '../engine/random.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { pmemsave, startTestGuest } from '../qemu/guests.js'
import type { Action, Fault } from './plan.js'
import { type FaultProxy, startFaultProxy } from './proxy.js'

const MiB = 1024 * 1024
const RAM_MIB = 16
const TIMEOUT_MS = 240_000

interface Qemus {
  readonly source: Qemu
  readonly destination: Qemu
  readonly proxy: FaultProxy
}

/**
 * A cut at a bad moment is no pause for QEMU itself, but the end, and a guest that asks for few pages may have all of
 * them before the cut: such a move says nothing of the proxy, and is made again.
 */
const TRIES = 4
/** How long one may take to get to the cut, or to pause. */
const SETTLE_MS = 15_000

/** The cut has happened; false: QEMU was done before, or sends nothing more. */
async function isCut({ qmp }: Qemu, proxy: FaultProxy, cuts: number): Promise<boolean> {
  for (const endMs = performance.now() + SETTLE_MS; proxy.fired.length < cuts; ) {
    if (performance.now() > endMs || (await queryMigration(qmp)).status === 'completed') return false
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return true
}

async function pauses({ qmp }: Qemu): Promise<boolean> {
  try {
    const { status } = await waitForMigration(qmp, ['postcopy-paused', 'completed'], { timeoutMs: SETTLE_MS })
    return status === 'postcopy-paused'
  } catch (error) {
    if (error instanceof GuestError || error instanceof ChannelError) return false // failed, or never paused
    throw error
  }
}

/** Both paused: out of band at the destination, whose main thread may itself wait for a page. */
async function recover({ source, destination, proxy }: Qemus, attempt: number, to: (uri: string) => void) {
  const uri = `unix:${join(destination.directory, `migration-${attempt}`)}`
  to(uri)
  // The destination may be a moment behind.
  for (const endMs = performance.now() + 20_000; ; await new Promise((resolve) => setTimeout(resolve, 50))) {
    try {
      await destination.qmp.execute('migrate-recover', { uri }, { oob: true })
      break
    } catch (error) {
      if (performance.now() > endMs) throw error
    }
  }
  await source.qmp.execute('migrate', { uri: proxy.uri, resume: true })
}

async function moveThroughFaults(...move: Parameters<typeof tryToMove>): Promise<FaultProxy> {
  const [t] = move
  for (let tries = 0; tries < TRIES; tries++) {
    const proxy = await tryToMove(...move)
    if (proxy !== undefined) return proxy
    t.diagnostic('QEMU was done before it was cut off, or did not pause')
  }
  return assert.fail(`QEMU has not paused in any of ${TRIES} moves`)
}

/** Undefined: the source did not pause. */
async function tryToMove(
  t: TestContext,
  version: string,
  preempt: boolean,
  plan: readonly Fault[],
): Promise<FaultProxy | undefined> {
  const qemu = findQemu(version)!
  const capabilities = ['events', 'postcopy-ram', ...(preempt ? ['postcopy-preempt'] : [])]
  const options = { guest: 'rom', ramMiB: RAM_MIB, capabilities } as const
  const source = await startTestGuest(qemu, options)
  t.after(source.kill)
  const destination = await startTestGuest(qemu, { ...options, incoming: true })
  t.after(destination.kill)
  await source.waitForOutput(/abc/)
  let uri = `unix:${join(destination.directory, 'migration-0')}`
  const proxy = await startFaultProxy({
    listen: `unix:${join(source.directory, 'proxy')}`,
    to: () => uri,
    plan,
  })
  t.after(proxy.close)
  await destination.qmp.execute('migrate-incoming', { uri })
  // Slow enough that there is something left to send when the connection is cut.
  await source.qmp.execute('migrate-set-parameters', { 'max-postcopy-bandwidth': 4 * MiB })
  await source.qmp.execute('migrate', { uri: proxy.uri })
  await source.qmp.execute('migrate-start-postcopy')
  for (const cut of plan.keys()) {
    if (!(await isCut(source, proxy, cut + 1)) || !(await pauses(source))) {
      await Promise.all([source.kill(), destination.kill(), proxy.close()])
      return undefined
    }
    await recover({ source, destination, proxy }, cut + 1, (next) => {
      uri = next
    })
  }
  await waitForMigration(source.qmp, ['completed'])
  await waitForMigration(destination.qmp, ['completed'])
  await destination.qmp.execute('stop')
  const { wrongAt, detail } = checkRam(await pmemsave(destination, 0, RAM_MIB * MiB), romRange(RAM_MIB * MiB))
  assert.equal(wrongAt, undefined, detail)
  proxy.pages.assertEachPageOnce()
  assert.equal(proxy.connections.filter(({ channel }) => channel === 'main').length, plan.length + 1)
  t.diagnostic(`${proxy.pages.sent} page records after the switch, ${proxy.pages.lost} pages lost on the way`)
  await Promise.all([source.quit(), destination.quit()])
  return proxy
}

for (const version of ['7.2', '10.0']) {
  const options = { skip: skipReason({ qemus: [version] }), timeout: TIMEOUT_MS }
  const main = { channel: 'main', direction: 'forward' } as const

  test(
    `QEMU ${version}: cut after the switch, and in each recovery, at random records`,
    options,
    async (t) => {
      const random = createRandom(SEEDS.first)
      const action = (): Action =>
        random.pick([
          { do: 'cut', by: 'fin' },
          { do: 'truncate', bytes: random.integer(4096) },
        ])
      await moveThroughFaults(t, version, false, [
        { ...main, from: 'loaded', after: random.integer(500), action: action() },
        { ...main, connection: 1, kind: 'page', after: random.integer(100), action: action() },
        { ...main, connection: 2, kind: 'page', after: random.integer(100), action: action() },
      ])
    },
  )

  test(`QEMU ${version} with postcopy-preempt: the urgent channel is cut`, options, async (t) => {
    const proxy = await moveThroughFaults(t, version, true, [
      { ...main, channel: 'preempt', after: 1, action: { do: 'cut', by: 'fin' } },
    ])
    const urgent = proxy.connections.filter(({ channel }) => channel === 'preempt')
    assert.equal(urgent.length, 2)
    assert(urgent[0]!.kinds.forward.every((kind) => ['page', 'zero', 'eos'].includes(kind)))
  })
}
