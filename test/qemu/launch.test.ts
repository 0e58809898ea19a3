// QMP client, launcher and test guests with the QEMUs of this machine.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { test } from 'node:test'
import { ChannelError, GuestError, HostUnsupportedError } from '../../src/errors.js'
import { checkRam, romRange } from '../../src/guest/rom.js'
import { launchQemu } from '../../src/qemu/launch.js'
import { waitForMigration } from '../../src/qemu/migration.js'
import { QmpError } from '../../src/qemu/qmp.js'
import { findQemu, findQemus, skipReason } from './find.js'
import { beats, pmemHash, pmemsave, startTestGuest } from './guests.js'

const MiB = 1024 * 1024

/** A zombie is dead: in a container nobody may reap what has lost its parent. */
function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

test('a program that is not there is reported before anything starts', async () => {
  await assert.rejects(launchQemu({ path: '/nonexistent/qemu', args: [] }), HostUnsupportedError)
  await assert.rejects(launchQemu({ path: 'qemu-nonexistent', args: [] }), HostUnsupportedError)
})

for (const version of ['7.2', '10.0']) {
  const options = { skip: skipReason({ qemus: [version] }), timeout: 180_000 }
  const qemu = findQemu(version)!

  test(`QEMU ${version}: handshake, answers, errors, events, quit`, options, async (t) => {
    const guest = await startTestGuest(qemu)
    t.after(guest.kill)
    assert.equal(`${guest.qmp.version.major}.${guest.qmp.version.minor}`, version)
    assert.equal(guest.qmp.oob, true)
    assert.deepEqual(
      await guest.qmp.execute('migrate-pause', {}, { oob: true }).catch((error) => error.code),
      'QMP',
    )

    const stopped = guest.qmp.waitForEvent('STOP')
    await guest.qmp.execute('stop')
    await stopped
    assert.equal((await guest.qmp.execute<{ status: string }>('query-status')).status, 'paused')

    await assert.rejects(guest.qmp.execute('no-such-command'), (error) => {
      assert.ok(error instanceof QmpError)
      assert.equal(error.errorClass, 'CommandNotFound')
      return true
    })
    await assert.rejects(guest.qmp.waitForEvent('RESUME', { timeoutMs: 50 }), ChannelError)

    // The longest answer there is: it comes in many chunks.
    const schema = await guest.qmp.execute<unknown[]>('query-qmp-schema')
    assert.ok(schema.length > 500)

    const shutdown = guest.qmp.waitForEvent('SHUTDOWN')
    assert.deepEqual(await guest.quit(), { code: 0, signal: null })
    assert.equal((await shutdown).guest, false)
    assert.equal(isAlive(guest.pid), false)
    assert.equal(existsSync(guest.directory), false)
  })

  test(`QEMU ${version}: an early exit is told in its own words`, options, async () => {
    await assert.rejects(launchQemu({ path: qemu.path, args: ['-machine', 'nonsense'] }), (error) => {
      assert.ok(error instanceof GuestError)
      assert.match(error.message, /exited with code 1: .*unsupported machine type/s)
      return true
    })
  })

  test(`QEMU ${version}: killed, it is gone, and whoever waits for it is told`, options, async (t) => {
    const guest = await startTestGuest(qemu)
    t.after(guest.kill)
    const output = assert.rejects(guest.waitForOutput(/never/), GuestError)
    const answer = assert.rejects(guest.qmp.waitForEvent('STOP'), ChannelError)
    assert.deepEqual(await guest.kill(), { code: null, signal: 'SIGKILL' })
    await Promise.all([output, answer])
    assert.equal(isAlive(guest.pid), false)
    await guest.quit()
  })

  test(`QEMU ${version}: guest RAM can be read`, options, async (t) => {
    const guest = await startTestGuest(qemu, { paused: true })
    t.after(guest.kill)
    const rom = await pmemsave(guest, 0xf0000, 0x10000)
    assert.deepEqual([...rom.subarray(0xfff0, 0xfff2)], [0xeb, 0xfe])
    assert.equal((await pmemHash(guest, 0x100000, 0x10000)).length, 64)
    await guest.quit()
  })

  test(`QEMU ${version}: the ROM guest counts in its RAM`, options, async (t) => {
    const guest = await startTestGuest(qemu, { guest: 'rom', ramMiB: 8 })
    t.after(guest.kill)
    await guest.waitForOutput(/abc/)
    await guest.qmp.execute('stop')
    const { wrongAt, detail } = checkRam(await pmemsave(guest, 0, 8 * MiB), romRange(8 * MiB))
    assert.equal(wrongAt, undefined, detail)
    await guest.quit()
  })

  const withLinux = { ...options, skip: skipReason({ qemus: [version], linuxGuest: true }) }
  test(`QEMU ${version}: Linux boots and its heart beats`, withLinux, async (t) => {
    const guest = await startTestGuest(qemu, { guest: 'linux' })
    t.after(guest.kill)
    await guest.waitForOutput(/beat 3\r?\n/, { timeoutMs: 40_000 })
    assert.deepEqual(beats(guest).slice(0, 3), [1, 2, 3])
    await guest.quit()
  })

  test(`QEMU ${version}: postcopy from one to another`, options, async (t) => {
    const source = await startTestGuest(qemu)
    t.after(source.kill)
    const destination = await startTestGuest(qemu, { incoming: true })
    t.after(destination.kill)
    const uri = `unix:${destination.directory}/migration`
    await destination.qmp.execute('migrate-incoming', { uri })
    await source.qmp.execute('migrate', { uri })
    await source.qmp.execute('migrate-start-postcopy')
    const info = await waitForMigration(source.qmp, ['completed'])
    assert.ok(info.ram!.total! > 0)
    await waitForMigration(destination.qmp, ['completed'])
    await Promise.all([source.quit(), destination.quit()])
  })
}

test('a QEMU does not outlive a parent that is killed', { skip: skipReason(), timeout: 90_000 }, async () => {
  const { path } = findQemus()[0]!
  const launchModule = new URL('../../src/qemu/launch.js', import.meta.url).href
  const script = `
    import { launchQemu } from ${JSON.stringify(launchModule)}
    const args = ['-accel', 'tcg', '-machine', 'none', '-display', 'none']
    const { pid, directory } = await launchQemu({ path: ${JSON.stringify(path)}, args })
    console.log(JSON.stringify({ pid, directory }))
    process.kill(process.pid, 'SIGKILL')`
  let said = ''
  try {
    execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' })
  } catch (error) {
    said = (error as { stdout: string }).stdout
  }
  const { pid, directory } = JSON.parse(said)
  for (let attempt = 0; attempt < 100 && isAlive(pid); attempt++) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  assert.equal(isAlive(pid), false)
  rmSync(directory, { recursive: true })
})
