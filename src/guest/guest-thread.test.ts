import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { GuestError } from '../errors.js'
import { createWake } from '../os/wake.js'
import { type GuestHandle, startGuest } from './guest-handle.js'
import { createGuestRemote } from './guest-remote.js'
import type { StuckOptions } from './stuck-guest.fixture.js'

const TIMEOUT = { timeout: 90_000 }

function stuckGuest(options: StuckOptions): Promise<GuestHandle> {
  return startGuest({ module: new URL('./stuck-guest.fixture.js', import.meta.url), options })
}

test('an engine thread stops, saves and resumes a guest', TIMEOUT, async () => {
  const guest = await stuckGuest({})
  const remote = createGuestRemote(guest.connect())
  const outcome = new Promise((resolve) => guest.on('firstInstruction', resolve))
  await guest.start()
  await outcome
  const { devices, stoppedAt } = remote.stopAndSave()
  assert.deepEqual([...devices], [1, 2, 3])
  assert.deepEqual(remote.stop().stoppedAt, stoppedAt, 'a second stop tells of the first')
  assert.equal(guest.progress(), 7)
  remote.resume()
  assert(remote.stop().stoppedAt.monotonicUs > stoppedAt.monotonicUs)
  await guest.destroy()
})

test(
  'load and run are not waited for; load signals the wake descriptor, run tells the main thread',
  TIMEOUT,
  async () => {
    const guest = await stuckGuest({})
    const remote = createGuestRemote(guest.connect())
    const wake = createWake()
    remote.load(Uint8Array.of(1), wake.fd)
    while (!remote.loaded()) await sleep(1)
    await sleep(5)
    assert(wake.drain())
    const runs = new Promise((resolve) => guest.on('firstInstruction', resolve))
    remote.run()
    await runs
    assert(!wake.drain(), 'by now the descriptor may be closed')
    await guest.destroy()
    wake.close()
  },
)

test('an error in loadDevices reaches the engine thread and main', TIMEOUT, async () => {
  const guest = await stuckGuest({ throwIn: 'loadDevices' })
  const failed = new Promise<Error>((resolve) => guest.on('failed', resolve))
  const remote = createGuestRemote(guest.connect())
  const wake = createWake()
  remote.load(new Uint8Array(1), wake.fd)
  const thrown = /thrown in loadDevices/
  await assert.rejects(
    async () => {
      while (!remote.loaded()) await sleep(1)
    },
    (error) => error instanceof GuestError && thrown.test(error.message),
  )
  assert.match((await failed).message, thrown)
  assert.throws(() => remote.loaded(), thrown)
  await guest.destroy()
  wake.close()
})

test('an error in run reaches main', TIMEOUT, async () => {
  const guest = await stuckGuest({ throwIn: 'run' })
  const failed = new Promise<Error>((resolve) => guest.on('failed', resolve))
  createGuestRemote(guest.connect()).run()
  assert.match((await failed).message, /thrown in run/)
  await guest.destroy()
})

test('an error in an awaited request is thrown where it was asked', TIMEOUT, async () => {
  const guest = await stuckGuest({ throwIn: 'saveDevices' })
  assert.throws(() => createGuestRemote(guest.connect()).save(), /thrown in saveDevices/)
  await guest.destroy()
})

test('a guest that does not answer is a GuestError, and can still be destroyed', TIMEOUT, async () => {
  const guest = await stuckGuest({ stuckIn: 'saveDevices' })
  const remote = createGuestRemote(guest.connect(), 100)
  assert.throws(() => remote.save(), /did not answer "save" within 100 ms/)
  await guest.destroy()
  assert.throws(() => remote.stop(), /guest thread has ended/)
  await assert.rejects(guest.check(), GuestError)
})

test('a guest that cannot be created rejects startGuest', TIMEOUT, async () => {
  await assert.rejects(stuckGuest({ throwIn: 'create' }), /thrown in create/)
  await assert.rejects(startGuest({ module: new URL('file:///no/such/module.js') }), /module/)
})

test('nothing is output after stop, nor after destroy', TIMEOUT, async () => {
  const guest = await stuckGuest({})
  let dots = 0
  guest.on('output', () => dots++)
  await guest.start()
  await sleep(30)
  await guest.stop()
  const atStop = dots
  assert(atStop > 0)
  await sleep(20)
  assert.equal(dots, atStop)
  await guest.start()
  await sleep(20)
  const ended = guest.destroy()
  const atDestroy = dots
  await ended
  assert.equal(dots, atDestroy)
})
