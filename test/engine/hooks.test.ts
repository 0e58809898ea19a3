// What the engine promises to guests of one's own: when their balloon is held, and who has them when loading fails.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type GuestHandle, startGuest } from '../../src/index.js'
import { assertMoved, assertProgress, begin, MiB, outcomeOf } from './guests.js'
import { postcopySkipReason } from './host.js'

const skip = postcopySkipReason()
const options = { skip, timeout: 90_000 }
const MODULE = new URL('./balloon.fixture.js', import.meta.url)
const BLOCKS = [{ name: 'm', length: MiB, pageSize: 4096 }]

async function balloonGuest(refuse = false): Promise<GuestHandle> {
  return startGuest({ module: MODULE, options: { blocks: BLOCKS, refuse } })
}

for (const [postcopy, expected] of [
  ['now', ['hold true', 'load', 'run', 'hold false']],
  ['never', ['load', 'run']],
] as const) {
  test(`the balloon is held during postcopy: ${postcopy}`, options, async () => {
    const guest = await balloonGuest()
    await guest.start()
    const ends = begin(guest, MODULE, { postcopy })
    let notes = ''
    ends.incoming.on('guest', (arriving) =>
      arriving.on('output', (bytes) => {
        notes += Buffer.from(bytes).toString()
      }),
    )
    const moved = assertMoved(await outcomeOf(ends))
    await assertProgress(moved)
    await sleep(20)
    assert.deepEqual(notes.trim().split('\n'), expected)
    await guest.destroy()
    await moved.destroy()
  })
}

for (const postcopy of ['now', 'never'] as const) {
  test(
    `a guest that cannot load its devices: the source takes it back (postcopy ${postcopy})`,
    options,
    async () => {
      const guest = await balloonGuest()
      await guest.start()
      const ends = begin(guest, MODULE, { postcopy, guest: () => balloonGuest(true) })
      const { source, destination } = await outcomeOf(ends)
      assert.match(destination.report.error!, /takes no devices/)
      assert.equal(destination.report.cause?.name, 'GuestError')
      assert.equal(destination.guest, undefined)
      assert.equal(source.status, 'failed')
      assert.match(source.error!, /runs on here/)
      await assertProgress(guest)
      await guest.destroy()
    },
  )
}
