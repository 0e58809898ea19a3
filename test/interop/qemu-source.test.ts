// An unmodified QEMU migrates to this destination by postcopy. Every fault of a reader that goes over RAM in scattered
// order is answered by that QEMU; afterwards all of RAM equals the stopped source's, byte for byte.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type GuestHandle, receive, startGuest } from '../../src/index.js'
import { viewOf } from '../../src/os/mapping.js'
import { waitForMigration } from '../../src/qemu/migration.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { beats, pmemsave, startTestGuest } from '../qemu/guests.js'

const MiB = 1024 * 1024

interface Case {
  readonly name: string
  readonly ramMiB: number
  readonly guest: 'rom' | 'linux'
  /** Bytes a second: slow enough that precopy is still under way when the switch is ordered. */
  readonly precopyBandwidth?: number
  readonly capabilities?: readonly string[]
}

const CASES: readonly Case[] = [
  { name: 'at once', ramMiB: 64, guest: 'rom' },
  { name: 'in the middle of precopy', ramMiB: 64, guest: 'rom', precopyBandwidth: 20 * MiB },
  {
    name: 'a Linux guest, in the middle of precopy',
    ramMiB: 256,
    guest: 'linux',
    precopyBandwidth: 30 * MiB,
  },
  {
    name: 'with xbzrle-compressed pages before the switch',
    ramMiB: 64,
    guest: 'rom',
    precopyBandwidth: 60 * MiB,
    capabilities: ['xbzrle'],
  },
  {
    name: 'with a second connection for requested pages',
    ramMiB: 64,
    guest: 'rom',
    capabilities: ['postcopy-preempt'],
  },
]

for (const version of ['7.2', '10.0']) {
  for (const each of CASES) {
    const { guest: kind, ramMiB, precopyBandwidth, capabilities = [] } = each
    const qemus = { qemus: [version], linuxGuest: kind === 'linux' }
    test(`QEMU ${version} source, ${each.name}`, { skip: skipReason(qemus), timeout: 360_000 }, async (t) => {
      const qemu = await startTestGuest(findQemu(version)!, {
        guest: kind,
        ramMiB,
        capabilities: ['events', 'postcopy-ram', ...capabilities],
      })
      t.after(qemu.kill)
      await (kind === 'linux' ? qemu.waitForOutput(/beat 5/, { timeoutMs: 60_000 }) : qemu.waitForOutput(/d/))

      const incoming = receive({
        listen: 'tcp:127.0.0.1:0',
        preempt: capabilities.includes('postcopy-preempt'),
        guest: (machine, blocks) => startGuest({ module: 'ram', incoming: { machine, blocks } }),
      })
      t.after(() => incoming.cancel())
      const bandwidth = precopyBandwidth ?? 1024 * MiB
      await qemu.qmp.execute('migrate-set-parameters', { 'max-bandwidth': bandwidth, 'downtime-limit': 1 })
      await qemu.qmp.execute('migrate', { uri: incoming.uri })
      if (precopyBandwidth !== undefined) await untilBytes(() => incoming.stats.bytes, 40 * MiB)
      await qemu.qmp.execute('migrate-start-postcopy')
      const { report, guest } = await incoming.done
      assert.equal(report.error, undefined)
      assert.ok(report.ok && guest !== undefined)
      await waitForMigration(qemu.qmp, ['completed'], { timeoutMs: 20_000 })
      await guest.stop()
      await assertSameRam(guest, await pmemsave(qemu, 0, ramMiB * MiB))
      assert.ok(precopyBandwidth !== undefined || report.faults > 0, 'nobody faulted')
      if (capabilities.includes('postcopy-preempt')) assert.ok(incoming.stats.urgentBytes > 4096)
      if (kind === 'linux') assert.ok(beats(qemu).length >= 5)
      await guest.destroy()
    })
  }
}

/** From 1 MiB up: below it, guest-physical memory shows ROMs and devices instead of RAM. */
async function assertSameRam(guest: GuestHandle, pmem: Buffer): Promise<void> {
  const block = guest.blocks.find(({ name }) => name === 'pc.ram')
  assert.equal(block?.length, pmem.length)
  const ram = Buffer.from(viewOf(block!.address, block!.length))
  for (let at = MiB; at < pmem.length; at += 4096) {
    if (ram.compare(pmem, at, at + 4096, at, at + 4096) !== 0) assert.fail(`RAM differs in the page at ${at}`)
  }
}

async function untilBytes(bytes: () => number, wanted: number): Promise<void> {
  const deadline = performance.now() + 30_000
  while (bytes() < wanted) {
    assert.ok(performance.now() < deadline, `only ${bytes()} bytes came`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
