// Each guest that checks itself, moved by hand: stop, save, copy its RAM to a second one, load, go on.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { FarfaultError, GuestError, UsageError } from '../errors.js'
import { memcpy, viewOf } from '../os/memory.js'
import { createWake } from '../os/wake.js'
import { type GuestHandle, type GuestSpec, startGuest } from './guest-handle.js'
import { createGuestRemote } from './guest-remote.js'
import type { PatternOptions } from './pattern.js'

const MiB = 1024 * 1024
const TIMEOUT = { timeout: 180_000 }

interface Observed {
  readonly guest: GuestHandle
  output(): string
  failure(): Error | undefined
}

async function observed(spec: GuestSpec): Promise<Observed> {
  const guest = await startGuest(spec)
  let output = ''
  let failure: Error | undefined
  guest.on('output', (bytes) => {
    output += Buffer.from(bytes).toString('latin1')
  })
  guest.on('failed', (error) => {
    failure = error
  })
  return { guest, output: () => output, failure: () => failure }
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await sleep(2)
}

/** A guest like `from` with its RAM and devices, stopped. */
async function moved(from: GuestHandle, module: 'v86' | 'pattern'): Promise<Observed> {
  const { devices } = createGuestRemote(from.connect()).stopAndSave()
  const { machine } = from
  const to = await observed({ module, incoming: { machine, blocks: from.blocks } })
  for (const [i, { address, length }] of from.blocks.entries()) {
    memcpy(to.guest.blocks[i]!.address, address, length)
  }
  const remote = createGuestRemote(to.guest.connect())
  const wake = createWake()
  remote.load(devices, wake.fd)
  await until(() => remote.loaded())
  wake.close()
  return to
}

test('the v86 guest goes on after a move: no letter is missing or repeated', TIMEOUT, async () => {
  const a = await observed({ module: 'v86', options: { memoryBytes: 8 * MiB, end: 6 * MiB } })
  await a.guest.start()
  await until(() => a.output().length > 40)
  const b = await moved(a.guest, 'v86')
  await sleep(20) // the last letters of `a` are on their way
  const atMove = await b.guest.check()
  assert(atMove.ok, atMove.detail)
  await b.guest.start()
  await until(() => b.output().length > 40)
  await b.guest.stop()
  await sleep(20)

  const letters = a.output() + b.output()
  assert.equal(letters, Array.from(letters, (_, i) => String.fromCharCode(0x61 + (i % 26))).join(''))
  assert.equal(b.guest.progress(), letters.length, 'the count of passes moved too')
  const atEnd = await b.guest.check()
  assert(atEnd.ok, atEnd.detail)
  assert.match(atEnd.detail, /^1280 pages/, 'the range moved too')

  const [block] = b.guest.blocks
  viewOf(block!.address + 2 * MiB, 4096)[17] = 1
  const spoilt = await b.guest.check()
  assert(!spoilt.ok)
  assert.match(spoilt.detail, /0x200011/)
  await Promise.all([a.guest.destroy(), b.guest.destroy()])
})

test('the v86 guest refuses what is not its own', TIMEOUT, async () => {
  await assert.rejects(startGuest({ module: 'v86', options: { memoryBytes: 1000 } }), UsageError)
  const blocks = [{ name: 'pc.ram', length: 8 * MiB, pageSize: 4096 }]
  const spec = { module: 'v86', incoming: { machine: 'farfault-v86', blocks } } as const
  await assert.rejects(startGuest(spec), GuestError)
})

const SMALL: PatternOptions = {
  blocks: [
    { name: 'first', length: 4 * MiB },
    { name: 'second', length: 2 * MiB, backing: 'memfd-private' },
  ],
  pattern: 'random',
  seed: 42,
  writeRatio: 0.5,
}
const VARIANTS: Record<string, Partial<PatternOptions>> = {
  sequential: { pattern: 'sequential' },
  random: { initialPages: 500 },
  stride: { pattern: 'stride' },
  'hot-cold': { pattern: 'hot-cold' },
  sparse: { touchedPages: 100, initialPages: 100 },
  'at a rate': { pagesPerSecond: 5000 },
}
for (const [name, variant] of Object.entries(VARIANTS)) {
  test(`the pattern guest goes on after a move: ${name}`, TIMEOUT, async () => {
    const a = await observed({ module: 'pattern', options: { ...SMALL, ...variant } })
    await a.guest.start()
    await until(() => a.guest.progress() > 600)
    const b = await moved(a.guest, 'pattern')
    const steps = b.guest.progress()
    await b.guest.start()
    await until(() => b.guest.progress() > steps + 600)
    await b.guest.stop()
    const { ok, detail } = await b.guest.check()
    assert(ok, detail)
    assert.equal(b.failure(), undefined)
    await Promise.all([a.guest.destroy(), b.guest.destroy()])
  })
}

test('the pattern guest notices one wrong byte, when it visits it and in the end', TIMEOUT, async () => {
  const options = { ...SMALL, pattern: 'sequential', writeRatio: 0 }
  const { guest, failure } = await observed({ module: 'pattern', options })
  viewOf(guest.blocks[1]!.address, 8192)[4096] = 1
  const { ok, detail } = await guest.check()
  assert(!ok)
  assert.match(detail, /"second" \+ 0x1000 \+ 0x0/)
  await guest.start()
  await until(() => failure() !== undefined)
  assert.match(failure()!.message, /"second" \+ 0x1000/)
  await guest.destroy()
})

test('the pattern guest keeps its rate', TIMEOUT, async () => {
  const { guest } = await observed({ module: 'pattern', options: { ...SMALL, pagesPerSecond: 1000 } })
  await guest.start()
  await sleep(500)
  await guest.stop()
  assert(guest.progress() > 100 && guest.progress() < 700, `${guest.progress()} steps`)
  await guest.destroy()
})

test('the pattern guest uses RAM above 4 GiB', TIMEOUT, async () => {
  const blocks = [{ name: 'big', length: 5 * 1024 * MiB }]
  const options = { ...SMALL, blocks, writeRatio: 1, touchedPages: 2000, initialPages: 2000 }
  const { guest, failure } = await observed({ module: 'pattern', options })
  await guest.start()
  await until(() => guest.progress() > 5000)
  await guest.stop()
  assert.equal(failure(), undefined)
  const { ok, detail } = await guest.check()
  assert(ok, detail)
  assert.match(detail, /2000 of them written/)
  viewOf(guest.blocks[0]!.address, 8192)[4096] = 1 // of a page that the guest never touches
  assert.match((await guest.check()).detail, /"big" \+ 0x1000 \+ 0x0/)
  await guest.destroy()
})

test('options that cannot be are refused', TIMEOUT, async () => {
  const cases: Record<string, unknown>[] = [
    { writeRatio: 2 },
    { touchedPages: 0 },
    { initialPages: 1e9 },
    { pattern: 'zigzag' },
    { blocks: [] },
    { blocks: [{ name: 'odd', length: 4097 }] },
  ]
  for (const wrong of cases) {
    await assert.rejects(startGuest({ module: 'pattern', options: { ...SMALL, ...wrong } }), UsageError)
  }
})

test('damaged device state is refused with a typed error', TIMEOUT, async () => {
  const { guest } = await observed({ module: 'pattern', options: SMALL })
  const devices = createGuestRemote(guest.connect()).save()
  const wake = createWake()
  for (const damage of [
    devices.subarray(0, devices.length - 9),
    devices.map((byte, i) => (i === 40 ? byte ^ 0xff : byte)),
    new Uint8Array(0),
  ]) {
    const remote = createGuestRemote(guest.connect())
    remote.load(damage, wake.fd)
    await assert.rejects(() => until(() => remote.loaded()), FarfaultError)
  }
  await guest.destroy()
  wake.close()
})

test('the RAM guest keeps device state as it came and reads each page once', TIMEOUT, async () => {
  const blocks = [
    { name: 'pc.ram', length: 4 * MiB, pageSize: 4096 },
    { name: 'pc.bios', length: 256 * 1024, pageSize: 4096 },
  ]
  const { guest, failure } = await observed({ module: 'ram', incoming: { machine: 'pc-i440fx-7.2', blocks } })
  assert.equal(guest.machine, 'pc-i440fx-7.2')
  const remote = createGuestRemote(guest.connect())
  const wake = createWake()
  remote.load(Uint8Array.of(4, 5, 6), wake.fd)
  await until(() => remote.loaded())
  await guest.start()
  await until(() => guest.progress() === (4 * MiB + 256 * 1024) / 4096)
  await sleep(10)
  assert.deepEqual([...remote.stopAndSave().devices], [4, 5, 6])
  assert.equal(failure(), undefined)
  assert((await guest.check()).ok)
  await guest.destroy()
  wake.close()
})
