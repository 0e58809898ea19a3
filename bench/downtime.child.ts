// downtime.child receive: takes one guest in. Prints where to connect; at the end the report.
// downtime.child migrate URI MODE MEBIBYTES WRITTEN: starts a guest that writes to RAM from 1 MiB to WRITTEN MiB, lets it
// write all of that once, and moves it. Prints the report.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { migrate, receive, startGuest } from '../src/index.js'

const MiB = 2 ** 20
/** Bytes a second that precopy may use: less than the guest writes, which an emulated PC does at some 80 MiB/s. */
const SLOW_LINK = 32 * MiB

async function receiveOne(): Promise<void> {
  const incoming = receive({
    listen: 'tcp:127.0.0.1:0',
    guest: (machine, blocks) => startGuest({ module: 'v86', incoming: { machine, blocks } }),
  })
  console.log(incoming.uri)
  const { guest, report } = await incoming.done
  assert.ok(guest !== undefined, report.error)
  await guest.stop()
  const { ok, detail } = await guest.check()
  assert.ok(ok, detail)
  console.log(JSON.stringify(report))
  await guest.destroy()
}

async function migrateOne(to: string, mode: string, mebibytes: number, writtenMiB: number): Promise<void> {
  const options = { memoryBytes: mebibytes * MiB, end: writtenMiB * MiB }
  const guest = await startGuest({ module: 'v86', options })
  await guest.start()
  while (guest.progress() < 2) await sleep(20) // every page of its range has been written
  const how = mode === 'now' ? ({ postcopy: 'now' } as const) : { maxBandwidth: SLOW_LINK }
  const report = await migrate(guest, { to, ...how }).done
  assert.ok(report.ok, report.error)
  assert.equal(report.mode, 'postcopy')
  console.log(JSON.stringify(report))
  await guest.destroy()
}

const [role, uri, mode, mebibytes, written] = process.argv.slice(2)
await (role === 'receive' ? receiveOne() : migrateOne(uri!, mode!, Number(mebibytes), Number(written)))
