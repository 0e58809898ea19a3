// A parked VM whose RAM proves itself, also while its guest runs: one part of it is counted up by the ROM guest, the other
// holds random bytes, which nobody touches. For tests.

import assert from 'node:assert/strict'
import { randomFillSync } from 'node:crypto'
import { closeSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildRom, checkRam, romRange } from '../../src/guest/rom.js'
import { convertStream } from '../../src/image/convert.js'
import { openImage } from '../../src/image/image.js'
import { ramOf, save } from '../image/images.js'
import { findQemu } from '../qemu/find.js'
import { startTestGuest } from '../qemu/guests.js'

const MiB = 1024 * 1024

export interface ParkedVm {
  readonly path: string
  /** A QEMU of that version for it, without QMP; `serial` as in `-serial`. */
  command(version: string, serial: string): string[]
  /** Its guest's pages are as it counts them, and all others the image's. @throws the first page that is not */
  assertRam(ram: Buffer): void
  /** What it printed goes on behind what it had printed when it was parked: no letter lost, none twice. */
  assertLetters(printed: string): void
}

export async function parkVm(directory: string, version: string, ramMiB: number): Promise<ParkedVm> {
  const path = join(directory, `${version}.img`)
  const rom = join(directory, 'rom')
  // A quarter is counted: the rest is pushed, while nobody asks.
  const range = romRange(ramMiB * MiB, MiB, (ramMiB / 4) * MiB)
  writeFileSync(rom, buildRom(range))
  const ram = join(directory, 'ram')
  writeRandom(ram, range.end, ramMiB * MiB)
  const parked = await startTestGuest(findQemu(version)!, {
    guest: buildRom(range),
    ramMiB,
    args: [
      ...['-machine', 'memory-backend=pc.ram'],
      ...['-object', `memory-backend-file,id=pc.ram,mem-path=${ram},size=${ramMiB}M,share=off`],
    ],
  })
  await parked.waitForOutput(/b/, { timeoutMs: 60_000 })
  await sleep(50) // in a pass
  await parked.qmp.execute('stop')
  await save(parked, `exec:cat > ${path}.stream`)
  const before = parked.output()
  await parked.kill()
  await convertStream(`${path}.stream`, path)
  for (const file of [ram, `${path}.stream`]) rmSync(file)
  return {
    path,
    command: (qemu, serial) => [
      ...[findQemu(qemu)!.path, '-accel', 'tcg', '-machine', 'pc-i440fx-7.2', '-m', `${ramMiB}M`],
      ...['-nodefaults', '-display', 'none', '-serial', serial, '-bios', rom],
    ],
    assertRam(ram) {
      const { wrongAt, detail } = checkRam(ram, range)
      assert.equal(wrongAt, undefined, detail)
      const image = openImage(path)
      const stored = ramOf(image, 'pc.ram')
      image.close()
      for (let at = range.end; at < ram.length; at += 4096)
        if (ram.compare(stored, at, at + 4096, at, at + 4096) !== 0) assert.fail(`another page at ${at}`)
    },
    assertLetters(printed) {
      const all = `${before}${printed}`
      for (const [i, letter] of [...all].entries())
        assert.equal(letter, String.fromCharCode(0x61 + (i % 26)), `letter ${i} of ${all}`)
    },
  }
}

/** Zeros in front of `start`. Both are multiples of 1 MiB. */
function writeRandom(path: string, start: number, end: number): void {
  const chunk = new Uint8Array(MiB)
  const fd = openSync(path, 'w')
  for (let at = start; at < end; at += chunk.length) {
    randomFillSync(chunk)
    writeSync(fd, chunk, 0, chunk.length, at)
  }
  closeSync(fd)
}

export const readPrinted = (path: string): string => readFileSync(path, 'latin1')
