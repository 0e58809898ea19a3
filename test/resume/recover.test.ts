// The connection between the image and a real QEMU breaks while its RAM arrives: it is recovered, and nothing is lost.

import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildRom, romRange } from '../../src/guest/rom.js'
import { convertStream } from '../../src/image/convert.js'
import { openImage } from '../../src/image/image.js'
import { resume } from '../../src/index.js'
import type { Qemu } from '../../src/qemu/launch.js'
import { waitForMigration } from '../../src/qemu/migration.js'
import { ramOf, save, temporaryDirectory } from '../image/images.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { pmemsave, startTestGuest } from '../qemu/guests.js'

const MiB = 1024 * 1024
const RAM_MIB = 64
const BREAKS = 2
const directory = temporaryDirectory({ after } as never)

const parked = new Map<string, Promise<string>>()

/** The image of a guest that has written all of its RAM; once a version. */
function park(version: string): Promise<string> {
  let path = parked.get(version)
  if (path === undefined) {
    path = parkAnew(version, join(directory, `${version}.img`))
    parked.set(version, path)
  }
  return path
}

async function parkAnew(version: string, path: string): Promise<string> {
  const qemu = await startTestGuest(findQemu(version)!, { guest: 'rom', ramMiB: RAM_MIB })
  await sleep(1000)
  await qemu.qmp.execute('stop')
  await save(qemu, `exec:cat > ${path}.stream`)
  await qemu.kill()
  await convertStream(`${path}.stream`, path)
  return path
}

const commandOf = (version: string): string[] => {
  const rom = join(directory, 'rom')
  writeFileSync(rom, buildRom(romRange(RAM_MIB * MiB)))
  return [
    ...[findQemu(version)!.path, '-accel', 'tcg', '-machine', 'pc-i440fx-7.2', '-m', `${RAM_MIB}M`],
    ...['-nodefaults', '-display', 'none', '-serial', 'stdio', '-bios', rom, '-S'],
  ]
}

async function assertRam(qemu: Qemu, path: string): Promise<void> {
  const image = openImage(path)
  const stored = ramOf(image, 'pc.ram')
  image.close()
  assert.equal(Buffer.compare(await pmemsave(qemu, MiB, RAM_MIB * MiB - MiB), stored.subarray(MiB)), 0)
}

for (const version of ['7.2', '10.0']) {
  for (const preempt of [false, true]) {
    const how = preempt ? ', with a channel for requested pages' : ''
    test(`QEMU ${version}${how}: broken ${BREAKS} times, recovered each time, RAM is the image's`, {
      skip: skipReason({ qemus: [version] }),
      timeout: 240_000,
    }, async () => {
      const path = await park(version)
      const { qemu, source, done } = await resume(path, {
        command: commandOf(version),
        console: 'collect',
        reconnect: true,
        preempt,
        maxBandwidth: 8 * MiB,
      })
      try {
        const seen: string[] = []
        source.on('status', (status) => seen.push(status))
        for (let i = 1; i <= BREAKS; i++) {
          await sleep(300)
          await qemu.qmp.execute('migrate-pause', {}, { oob: true })
          while (seen.filter((status) => status === 'postcopy-active').length < i) await sleep(20)
        }
        const report = await done
        assert.ok(report.ok, report.error)
        const paused = seen.filter((status) => status === 'postcopy-paused').length
        assert.ok(paused >= BREAKS, seen.join(' '))
        await waitForMigration(qemu.qmp, ['completed'])
        await assertRam(qemu, path)
      } finally {
        await qemu.kill()
      }
    })
  }

  test(`QEMU ${version}, on demand alone: broken ${BREAKS} times, and every page comes that is asked for`, {
    skip: skipReason({ qemus: [version] }),
    timeout: 240_000,
  }, async () => {
    const path = await park(version)
    const { qemu, source, done } = await resume(path, {
      ...{ command: commandOf(version), console: 'collect', reconnect: true, push: false },
    })
    const seen: string[] = []
    source.on('status', (status) => seen.push(status))
    for (let i = 1; i <= BREAKS; i++) {
      await pmemsave(qemu, i * MiB, MiB)
      await qemu.qmp.execute('migrate-pause', {}, { oob: true })
      while (seen.filter((status) => status === 'postcopy-active').length < i) await sleep(20)
    }
    await assertRam(qemu, path)
    assert.equal(seen.filter((status) => status === 'postcopy-paused').length, BREAKS, seen.join(' '))
    await qemu.kill()
    const report = await done
    assert.ok(report.ok, `QEMU has ended: nobody is waited for: ${report.error}`)
  })
}
