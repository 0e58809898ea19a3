// Guests on RAM that is missing, with the real userfaultfd: what they touch, when, and how they end.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { HostUnsupportedError } from '../errors.js'
import { discard, noHugePages } from '../os/mapping.js'
import { openUserfaultfd, type Userfaultfd } from '../os/userfaultfd.js'
import { createEventBatch } from '../os/userfaultfd-events.js'
import { createWake } from '../os/wake.js'
import { type GuestHandle, startGuest } from './guest-handle.js'
import { createGuestRemote } from './guest-remote.js'
import { ROM_BASE } from './rom.js'

const MiB = 1024 * 1024
const PAGE_BYTES = 4096
const userfaultfd = tryUserfaultfd()
const OPTIONS = { timeout: 180_000, skip: typeof userfaultfd === 'string' && userfaultfd }

function tryUserfaultfd(): Userfaultfd | string {
  try {
    return openUserfaultfd({ features: [] })
  } catch (error) {
    if (error instanceof HostUnsupportedError) return error.message
    throw error
  }
}

/** An incoming guest like `from`, loaded with its devices, all of its RAM missing. */
async function incomingOnMissingRam(from: GuestHandle) {
  const uffd = userfaultfd as Userfaultfd
  const { devices } = createGuestRemote(from.connect()).stopAndSave()
  const guest = await startGuest({
    module: 'v86',
    incoming: { machine: from.machine, blocks: from.blocks },
  })
  const { address, length } = guest.blocks[0]!
  noHugePages(address, length)
  discard(address, length)
  uffd.register(address, length, 'missing')
  const remote = createGuestRemote(guest.connect())
  const wake = createWake()
  remote.load(devices, wake.fd)
  while (!remote.loaded()) await sleep(1)
  return { uffd, guest, remote, wake, address, length, events: createEventBatch() }
}

test(
  'an incoming v86 guest touches nothing until it runs, and first the page of its code',
  OPTIONS,
  async () => {
    const source = await startGuest({ module: 'v86', options: { memoryBytes: 4 * MiB } })
    await source.start()
    await sleep(50)
    const { uffd, guest, remote, wake, address, length, events } = await incomingOnMissingRam(source)
    const sourceAddress = source.blocks[0]!.address
    assert.equal(uffd.readEvents(events), 0, 'loading devices touches no RAM')

    const faults: number[] = []
    let letters = ''
    let runs = false
    guest.on('firstInstruction', () => {
      runs = true
    })
    guest.on('output', (bytes) => {
      letters += Buffer.from(bytes).toString('latin1')
    })
    remote.run()
    while (faults.length === 0 || letters.length < 5) {
      const count = uffd.readEvents(events)
      for (let i = 0; i < count; i++) {
        const offset = Math.floor((events.address(i) - address) / PAGE_BYTES) * PAGE_BYTES
        if (faults.push(offset) === 1) {
          assert(!runs, 'not running before the page of the first instruction is there')
        }
        uffd.copy(address + offset, sourceAddress + offset, PAGE_BYTES)
      }
      await sleep(0)
    }
    assert(runs)
    assert.equal(faults[0], ROM_BASE)
    assert.equal(new Set(faults).size, faults.length, 'each page faults once')
    await guest.stop()
    // The rest arrives, as it would in the background.
    for (let offset = 0; offset < length; offset += PAGE_BYTES) {
      if (!faults.includes(offset)) uffd.copy(address + offset, sourceAddress + offset, PAGE_BYTES)
    }
    const { ok, detail } = await guest.check()
    assert(ok, detail)
    uffd.unregister(address, length)
    await Promise.all([guest.destroy(), source.destroy()])
    wake.close()
  },
)

test('a guest stalled on a missing page ends once its range is unregistered', OPTIONS, async () => {
  const source = await startGuest({ module: 'v86', options: { memoryBytes: 4 * MiB } })
  const { uffd, guest, remote, wake, address, length, events } = await incomingOnMissingRam(source)
  let told = 0
  for (const name of ['output', 'failed', 'firstInstruction'] as const) guest.on(name, () => told++)
  // Its program is at the reset vector, above RAM: only a loaded guest in mid-program stalls in `run` itself.
  remote.run()
  while (uffd.readEvents(events) === 0) await sleep(1)
  const before = told
  const ended = guest.destroy()
  const stalled = await Promise.race([ended.then(() => false), sleep(400).then(() => true)])
  assert(stalled, 'the thread cannot end before its page is there')
  uffd.unregister(address, length)
  await ended
  assert.equal(told, before)
  assert.throws(() => remote.stop(), /ended/)
  await source.destroy()
  wake.close()
})
