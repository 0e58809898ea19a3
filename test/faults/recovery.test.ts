// Recovery with a real QEMU at one end and farfault at the other, through the fault proxy: broken at random points after the
// guest runs at the destination, by the network or by `migrate-pause`. In the end RAM is right, and each page came once.

import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { openImage } from '../../src/image/image.js'
import { receive, serveImage, startGuest } from '../../src/index.js'
import { viewOf } from '../../src/os/mapping.js'
import { launchQemu, type Qemu } from '../../src/qemu/launch.js'
import { queryMigration, setMigrationCapabilities, waitForMigration } from '../../src/qemu/migration.js'
import { listenAgain } from '../../src/vm/listen-again.js'
import { postcopySkipReason } from '../engine/host.js'
import { createRandom, type Random } from '../engine/random.js'
import { temporaryDirectory } from '../image/images.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { pmemsave, startTestGuest } from '../qemu/guests.js'
import { type ParkedVm, parkVm, readPrinted } from '../resume/parked.js'
import type { Fault } from './plan.js'
import { type FaultProxy, startFaultProxy } from './proxy.js'

const MiB = 1024 * 1024
const RAM_MIB = 16
/** Breaks of each test; `CUTS=8` for more by hand: there are six tests. */
const CUTS = Number(process.env.CUTS ?? 2)
const SEED = Number(process.env.FARFAULT_SEED ?? 1)
/** Of the source: slow enough that something is left to send at the last break. */
const BYTES_A_SECOND = Math.round((RAM_MIB * MiB) / (3 + 2 * CUTS))
const directory = temporaryDirectory({ after } as never)

/** Breaks what is connected, at a random point of what comes next. */
async function breakIt(random: Random, proxy: FaultProxy, end: Qemu): Promise<void> {
  if (random.oneIn(4)) {
    await sleep(random.integer(300))
    await end.qmp.execute('migrate-pause', {}, { oob: true })
    return
  }
  const fault: Fault = {
    channel: 'main',
    direction: random.oneIn(4) ? 'back' : 'forward',
    connection: mains(proxy) - 1,
    after: random.integer(40),
    action: random.oneIn(2) ? { do: 'cut', by: 'fin' } : { do: 'truncate', bytes: random.integer(4096) },
  }
  proxy.plan([fault])
  // So many records may never come back: then the network breaks when it likes.
  const timer = setTimeout(() => proxy.cut('fin'), 600)
  await Promise.race([proxy.happened(1), sleep(620)])
  clearTimeout(timer)
}

const mains = ({ connections }: FaultProxy): number =>
  connections.filter(({ channel }) => channel === 'main').length

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const endMs = performance.now() + 30_000; !(await condition()); await sleep(20))
    assert.ok(performance.now() < endMs, `not within 30 s: ${what}`)
}

const statusOf = async (qemu: Qemu): Promise<string | undefined> => (await queryMigration(qemu.qmp)).status

const limits = (version: string) => ({
  skip: skipReason({ qemus: [version] }) || postcopySkipReason(),
  timeout: 120_000 + CUTS * 20_000,
})

// --- a QEMU is the source -------------------------------------------------------------------------------------------

async function fromQemu(t: TestContext, version: string): Promise<void> {
  const random = createRandom(SEED)
  const qemu = await startTestGuest(findQemu(version)!, { guest: 'rom', ramMiB: RAM_MIB })
  t.after(qemu.kill)
  await qemu.waitForOutput(/b/)
  const own = `unix:${join(qemu.directory, 'destination')}`
  const incoming = receive({
    listen: own,
    recover: own,
    guest: (machine, blocks) => startGuest({ module: 'ram', incoming: { machine, blocks } }),
  })
  t.after(() => incoming.cancel())
  const proxy = await startFaultProxy({ listen: `unix:${join(qemu.directory, 'proxy')}`, to: () => own })
  t.after(proxy.close)
  await qemu.qmp.execute('migrate-set-parameters', { 'max-postcopy-bandwidth': BYTES_A_SECOND })
  await qemu.qmp.execute('migrate', { uri: proxy.uri })
  await qemu.qmp.execute('migrate-start-postcopy')
  await until('the guest runs', () => proxy.passed.has('loaded'))
  for (let i = 0; i < CUTS; i++) {
    await breakIt(random, proxy, qemu)
    await until('the source is paused', async () => (await statusOf(qemu)) === 'postcopy-paused')
    await until('the destination is paused', () => incoming.status === 'postcopy-paused')
    // It listens a moment after it says so.
    await until('the destination listens', () => existsSync(own.slice('unix:'.length)))
    if (version !== '7.2' && random.oneIn(2)) await breakWithin(random, proxy, qemu)
    await qemu.qmp.execute('migrate', { uri: proxy.uri, resume: true })
    await until('both go on', async () => (await statusOf(qemu)) === 'postcopy-active')
  }
  const { report, guest } = await incoming.done
  assert.equal(report.error, undefined)
  assert.ok(report.ok && guest !== undefined)
  await waitForMigration(qemu.qmp, ['completed'])
  await guest.stop()
  const block = guest.blocks.find(({ name }) => name === 'pc.ram')!
  const ram = Buffer.from(viewOf(block.address, block.length))
  const expected = await pmemsave(qemu, 0, RAM_MIB * MiB)
  // Below 1 MiB guest-physical memory shows ROMs and devices instead of RAM.
  for (let at = MiB; at < expected.length; at += 4096)
    if (ram.compare(expected, at, at + 4096, at, at + 4096) !== 0)
      assert.fail(`RAM differs in the page at ${at}`)
  await guest.destroy()
  assert.ok(mains(proxy) > CUTS)
  proxy.pages.assertEachPageOnce()
  t.diagnostic(`${proxy.pages.sent} page records after the switch, ${proxy.pages.lost} pages lost on the way`)
}

/** A recovery that breaks itself, early: both are paused again. QEMU 7.2 does not survive that. */
async function breakWithin(random: Random, proxy: FaultProxy, qemu: Qemu): Promise<void> {
  proxy.plan([
    {
      channel: 'main',
      direction: random.oneIn(2) ? 'back' : 'forward',
      connection: mains(proxy),
      after: random.integer(6),
      action: { do: 'cut', by: 'fin' },
    },
  ])
  await qemu.qmp.execute('migrate', { uri: proxy.uri, resume: true })
  await proxy.happened(1)
  await until('the source is paused again', async () => (await statusOf(qemu)) === 'postcopy-paused')
  await sleep(200) // the destination, too, and listens
}

for (const version of ['7.2', '10.0']) {
  test(`QEMU ${version} is the source: broken ${CUTS} times`, limits(version), (t) => fromQemu(t, version))
}

// --- a QEMU is the destination --------------------------------------------------------------------------------------

const parked = new Map<string, Promise<ParkedVm>>()

async function toQemu(t: TestContext, version: string, preempt: boolean): Promise<void> {
  const random = createRandom(SEED + 1000)
  if (!parked.has(version)) parked.set(version, parkVm(directory, version, RAM_MIB))
  const vm = await parked.get(version)!
  const printed = join(directory, `printed-${version}-${preempt}`)
  const [path, ...args] = vm.command(version, `file:${printed}`)
  const qemu = await launchQemu({ path: path!, args: [...args, '-incoming', 'defer'], timeoutMs: 30_000 })
  t.after(qemu.kill)
  await setMigrationCapabilities(qemu.qmp, {
    events: true,
    'postcopy-ram': true,
    ...(preempt ? { 'postcopy-preempt': true } : {}),
  })
  let uri = `unix:${join(qemu.directory, 'migration')}`
  await qemu.qmp.execute('migrate-incoming', { uri })
  const listen = `unix:${join(qemu.directory, 'proxy')}`
  const proxy = await startFaultProxy({ listen, to: () => uri })
  t.after(proxy.close)
  const { source } = serveImage(vm.path, { maxBandwidth: BYTES_A_SECOND, quietMs: 0, preempt })
  t.after(() => source.cancel())
  let active = 0
  source.on('status', (status) => {
    if (status === 'postcopy-active') active++
  })
  await source.ready
  source.connect(proxy.uri, 'when-told')
  await until('the guest runs', () => proxy.passed.has('loaded'))
  for (let i = 1; i <= CUTS; i++) {
    await breakIt(random, proxy, qemu)
    const next = `unix:${join(qemu.directory, `recover-${i}`)}`
    await until('the source is paused', () => source.status === 'postcopy-paused')
    await until('QEMU listens again', () => listenAgain(qemu.qmp, next))
    uri = next
    source.reconnect(proxy.uri)
    await until('both go on', () => active > i)
  }
  const report = await source.done
  assert.ok(report.ok, report.error)
  await waitForMigration(qemu.qmp, ['completed'])
  await qemu.qmp.execute('stop')
  vm.assertRam(await pmemsave(qemu, 0, RAM_MIB * MiB))
  vm.assertLetters(readPrinted(printed))
  const image = openImage(vm.path)
  const present = new Map(image.blocks.map(({ name, present }) => [name, present]))
  image.close()
  proxy.pages.assertEachPageOnce((block, page) => !present.get(block)!.get(page))
  t.diagnostic(`${proxy.pages.sent} page records after the switch, ${proxy.pages.lost} pages lost on the way`)
}

for (const version of ['7.2', '10.0']) {
  for (const preempt of [false, true]) {
    const how = preempt ? ', with a channel for requested pages' : ''
    test(`QEMU ${version} is the destination${how}: broken ${CUTS} times`, limits(version), (t) =>
      toQemu(t, version, preempt),
    )
  }
}
