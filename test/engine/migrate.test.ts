// Guests that move between two halves of the engine in this process: real threads, sockets, userfaultfd.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  CancelledError,
  ChannelError,
  type GuestHandle,
  HostUnsupportedError,
  migrate,
  startGuest,
} from '../../src/index.js'
import { memcmp } from '../../src/os/mapping.js'
import { assertMoved, assertSoundAndEnd, begin, MiB, outcomeOf, startPattern, status } from './guests.js'
import {
  descriptorsSince,
  HUGE_PAGE_BYTES,
  openDescriptors,
  postcopySkipReason,
  reserveHugePages,
  watchedMappings,
} from './host.js'

const skip = postcopySkipReason()
const options = { skip, timeout: 90_000 }

/** One migration before anything is counted: what stays open after it stays once. */
if (skip === false) {
  const guest = await startPattern({ pagesPerSecond: 1000 })
  const moved = await outcomeOf(begin(guest, 'pattern', { postcopy: 'now' }))
  await moved.destination.guest?.destroy()
  await guest.destroy()
}
const descriptorsBefore = openDescriptors()

after(async () => {
  assert.deepEqual(await descriptorsSince(descriptorsBefore), [], 'descriptors left open')
  assert.deepEqual(watchedMappings(), [], 'ranges are still watched')
})

async function moveAndCheck(guest: GuestHandle, ends: ReturnType<typeof begin>) {
  const outcome = await outcomeOf(ends)
  const moved = assertMoved(outcome)
  await guest.destroy()
  await assertSoundAndEnd(moved)
  return outcome
}

test('postcopy at once: every page once, the guest runs before its RAM is there', options, async () => {
  const guest = await startPattern()
  const { source, destination } = await moveAndCheck(guest, begin(guest, 'pattern', { postcopy: 'now' }))
  assert.equal(source.mode, 'postcopy')
  assert.equal(source.switchReason, 'at once')
  const { pages, memoryBytes } = destination.report
  assert.equal(pages.normal + pages.zero, memoryBytes / 4096)
  assert(pages.requested > 0, 'the guest waited for nothing')
})

test('a guest that writes faster than precopy can follow: postcopy by itself', options, async () => {
  async function move() {
    const guest = await startPattern({ writeRatio: 1 })
    return moveAndCheck(guest, begin(guest, 'pattern', { downtimeLimitMs: 0, maxBandwidth: 50 * MiB }))
  }
  let { source, destination } = await move()
  // On an overloaded host the guest may get no turn during a whole pass: then precopy rightly converges.
  for (let more = 5; source.mode === 'precopy' && more > 0; more--) ({ source, destination } = await move())
  assert.equal(source.mode, 'postcopy')
  assert.equal(source.switchReason, 'precopy diverges')
  assert(source.passes >= 2)
  const { faults, blocktimeByThreadMs, blocktimeMs, faultLatencyUs } = destination.report
  assert(faults > 0)
  const [onlyThread] = Object.values(blocktimeByThreadMs)
  assert.equal(Object.keys(blocktimeByThreadMs).length, 1, 'one guest thread')
  assert(onlyThread! > 0 && Math.abs(onlyThread! - blocktimeMs) < 1, 'with one thread, blocked is overlapped')
  assert(faultLatencyUs.p50 > 0 && faultLatencyUs.p50 <= faultLatencyUs.max)
})

test('a slow guest converges: precopy, and never a fault', options, async () => {
  const guest = await startPattern({ pagesPerSecond: 500 })
  const { source, destination } = await moveAndCheck(guest, begin(guest, 'pattern'))
  assert.equal(source.mode, 'precopy')
  assert.equal(destination.report.faults, 0)
})

test('postcopy is never wanted: precopy alone, without a userfaultfd', options, async () => {
  const guest = await startPattern({ pagesPerSecond: 500 })
  const { source, destination } = await moveAndCheck(guest, begin(guest, 'pattern', { postcopy: 'never' }))
  assert.equal(source.mode, 'precopy')
  assert.equal(destination.report.postcopyMs, 0)
})

test('the switch is ordered in the middle of a long precopy', options, async () => {
  const guest = await startPattern({ pagesPerSecond: 5000 })
  const ends = begin(guest, 'pattern', { maxBandwidth: 4 * MiB })
  await status(ends.migration, 'active')
  await sleep(300)
  const startMs = performance.now()
  ends.migration.startPostcopy()
  const { source } = await moveAndCheck(guest, ends)
  assert.equal(source.switchReason, 'ordered')
  assert(performance.now() - startMs < 40_000)
})

test('over a unix socket, with the guest in blocks of several kinds', options, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'farfault-migrate-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const blocks = [
    { name: 'pc.ram', length: 8 * MiB },
    { name: 'vga.vram', length: 3 * MiB, backing: 'memfd-private' as const },
    { name: '/rom@etc/acpi/tables', length: 4096 },
    { name: 'n'.repeat(255), length: MiB },
  ]
  const guest = await startPattern({ blocks })
  await moveAndCheck(guest, begin(guest, 'pattern', { listen: `unix:${folder}/s`, postcopy: 'now' }))
})

for (const postcopy of ['now', 'auto', 'never'] as const) {
  test(`the v86 guest, postcopy ${postcopy}: its program goes on in order`, {
    skip,
    timeout: 180_000,
  }, async () => {
    const guest = await startGuest({ module: 'v86', options: { memoryBytes: 32 * MiB } })
    let letters = ''
    const hear = (bytes: Uint8Array) => {
      letters += Buffer.from(bytes).toString('latin1')
    }
    guest.on('output', hear)
    await guest.start()
    await sleep(200)
    const ends = begin(guest, 'v86', { postcopy, downtimeLimitMs: 1000 })
    ends.incoming.on('guest', (arriving) => arriving.on('output', hear))
    const moved = assertMoved(await outcomeOf(ends))
    const before = letters.length
    while (letters.length < before + 5) await sleep(5)
    await guest.destroy()
    await assertSoundAndEnd(moved)
    assert.match(letters, /^[a-z]{6,}$/)
    for (let i = 1; i < letters.length; i++) {
      assert.equal(
        (letters.charCodeAt(i) - letters.charCodeAt(i - 1) + 26) % 26,
        1,
        `break at ${i}: ${letters}`,
      )
    }
  })
}

test('RAM on huge pages, before the switch and after it', { skip, timeout: 180_000 }, async (t) => {
  const pages = 8
  const pool = reserveHugePages(2 * pages + 2)
  if (typeof pool === 'string') return t.skip(pool)
  t.after(() => pool.release())
  const blocks = [
    { name: 'huge', length: pages * HUGE_PAGE_BYTES, pageSize: HUGE_PAGE_BYTES },
    { name: 'small', length: MiB },
  ]
  for (const postcopy of ['now', 'auto'] as const) {
    const guest = await startPattern({ blocks, pagesPerSecond: 20_000 })
    const ends = begin(guest, 'pattern', { postcopy, downtimeLimitMs: 0, maxBandwidth: 50 * MiB })
    const { source } = await moveAndCheck(guest, ends)
    assert.equal(source.mode, 'postcopy')
  }
})

test('more than 4 GiB of RAM, hardly any of it used', { skip, timeout: 180_000 }, async () => {
  const blocks = [{ name: 'big', length: 6 * 1024 * MiB }]
  const guest = await startPattern({ blocks, touchedPages: 500, pagesPerSecond: 2000 })
  const startMs = performance.now()
  const { source, destination } = await outcomeOf(begin(guest, 'pattern', { postcopy: 'now' }))
  const moved = assertMoved({ source, destination })
  assert(performance.now() - startMs < 60_000, `took ${performance.now() - startMs} ms`)
  assert.equal(destination.report.pages.normal, 500)
  await guest.destroy()
  await assertSoundAndEnd(moved)
})

test('RAM is equal byte for byte', options, async () => {
  for (const postcopy of ['now', 'never'] as const) {
    const guest = await startPattern({ writeRatio: 0, initialPages: 2000, pagesPerSecond: 5000 })
    const moved = assertMoved(await outcomeOf(begin(guest, 'pattern', { postcopy })))
    await moved.stop()
    for (const block of guest.blocks) {
      const there = moved.blocks.find(({ name }) => name === block.name)!
      assert.equal(memcmp(block.address, there.address, block.length), 0, `block ${block.name} differs`)
    }
    await guest.destroy()
    await moved.destroy()
  }
})

test('shared RAM is refused with the reason, and the source guest goes on', options, async () => {
  const guest = await startPattern()
  const ends = begin(guest, 'pattern', {
    postcopy: 'now',
    guest: (_machine, blocks) =>
      startGuest({
        module: 'pattern',
        options: {
          blocks: blocks.map((block) => ({ ...block, backing: 'shared' })),
          pattern: 'random',
          seed: 1,
          writeRatio: 0,
        },
      }),
  })
  const { source, destination } = await outcomeOf(ends)
  assert(destination.report.cause instanceof HostUnsupportedError)
  assert.match(destination.report.error!, /"a" is mapped shared/)
  assert.equal(destination.guest, undefined)
  assert.equal(source.status, 'failed')
  await assertSoundAndEnd(guest)
})

test('requests are not held back by the bandwidth limit', { skip, timeout: 180_000 }, async () => {
  const guest = await startPattern({ blocks: [{ name: 'a', length: 2 * MiB }] })
  const ends = begin(guest, 'pattern', { postcopy: 'now', maxPostcopyBandwidth: MiB / 4 })
  const { destination } = await moveAndCheck(guest, ends)
  const { faults, faultLatencyUs } = destination.report
  assert(faults > 200, `only ${faults} faults`)
  assert(faultLatencyUs.p50 < 10_000, `half of the faults took over ${faultLatencyUs.p50} µs`)
})

test('cancelled at the source during precopy: the guest goes on there', options, async () => {
  const guest = await startPattern({ pagesPerSecond: 10_000 })
  const ends = begin(guest, 'pattern', { maxBandwidth: 2 * MiB })
  await status(ends.migration, 'active')
  await sleep(100)
  ends.migration.cancel()
  const { source, destination } = await outcomeOf(ends)
  assert.equal(source.status, 'cancelled')
  assert(source.cause instanceof CancelledError)
  assert.equal(source.mode, 'none')
  assert.equal(destination.report.status, 'failed')
  assert(destination.report.cause instanceof ChannelError, String(destination.report.cause))
  await assertSoundAndEnd(guest)
})

test('cancelled at the destination during precopy: the guest goes on at the source', options, async () => {
  const guest = await startPattern({ pagesPerSecond: 10_000 })
  const ends = begin(guest, 'pattern', { maxBandwidth: 2 * MiB })
  await status(ends.migration, 'active')
  await sleep(100)
  ends.incoming.cancel()
  const { source, destination } = await outcomeOf(ends)
  assert(destination.report.cause instanceof CancelledError, String(destination.report.cause))
  assert.equal(source.status, 'failed')
  assert(source.cause instanceof ChannelError, String(source.cause))
  await assertSoundAndEnd(guest)
})

test('cancelling after the switch has no effect', options, async () => {
  const guest = await startPattern()
  const ends = begin(guest, 'pattern', { postcopy: 'now', maxPostcopyBandwidth: 20 * MiB })
  await status(ends.migration, 'postcopy-active')
  ends.migration.cancel()
  await moveAndCheck(guest, ends)
})

test('nobody listens: the guest goes on', options, async () => {
  const guest = await startPattern()
  const source = await migrate(guest, { to: 'tcp:127.0.0.1:1' }).done
  assert.equal(source.status, 'failed')
  assert(source.cause instanceof ChannelError)
  await assertSoundAndEnd(guest)
})

test('a guest of another kind at the destination: the source guest goes on', options, async () => {
  const guest = await startPattern()
  const { source, destination } = await outcomeOf(begin(guest, 'v86', { postcopy: 'now' }))
  assert.equal(destination.report.cause?.name, 'GuestError')
  assert.equal(source.status, 'failed')
  await assertSoundAndEnd(guest)
})

test('three hops in a row', { skip, timeout: 180_000 }, async () => {
  let guest = await startPattern({ pagesPerSecond: 50_000 })
  for (const postcopy of ['now', 'auto', 'now'] as const) {
    const moved = assertMoved(await outcomeOf(begin(guest, 'pattern', { postcopy })))
    await guest.destroy()
    guest = moved
  }
  await assertSoundAndEnd(guest)
})

test('twenty migrations one after the other leave nothing behind', { skip, timeout: 270_000 }, async () => {
  const counts: number[] = []
  let afterFirst: string[] = []
  for (let i = 0; i < 20; i++) {
    const guest = await startPattern({ blocks: [{ name: 'a', length: MiB }] })
    await moveAndCheck(guest, begin(guest, 'pattern', { postcopy: i % 2 === 0 ? 'now' : 'auto' }))
    await sleep(50)
    counts.push(openDescriptors().length)
    if (i === 0) afterFirst = openDescriptors()
  }
  const left = await descriptorsSince(afterFirst)
  assert.deepEqual(left, [], `descriptors after each: ${counts.join(' ')}`)
})
