// A VM whose RAM is on huge pages is parked, and goes on in a QEMU on ordinary pages. On huge pages it is refused in plain
// words: the images that are served are pages of 4 KiB.

import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildRom, checkRam, romRange } from '../../src/guest/rom.js'
import { openImage } from '../../src/image/image.js'
import { GuestError, resume } from '../../src/index.js'
import { park } from '../../src/vm/park.js'
import { HUGE_PAGE_BYTES, reserveHugePages } from '../engine/host.js'
import { ramOf } from '../image/images.js'
import { startVm } from '../park/vms.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { pmemsave } from '../qemu/guests.js'

const MiB = 1024 * 1024
const RAM_MIB = 32
const MACHINE = 'pc-i440fx-7.2,memory-backend=m'
const ON_HUGE_PAGES = `memory-backend-memfd,id=m,size=${RAM_MIB}M,share=off,hugetlb=on,hugetlbsize=2M`
const ON_ORDINARY_PAGES = `memory-backend-ram,id=m,size=${RAM_MIB}M`
const range = romRange(RAM_MIB * MiB, MiB, RAM_MIB * MiB)

// Of the VM that is parked, and of the one that is refused.
const pool = reserveHugePages((2 * RAM_MIB * MiB) / HUGE_PAGE_BYTES)
after(() => {
  if (typeof pool !== 'string') pool.release()
})

for (const version of ['7.2', '10.0']) {
  const skip = typeof pool === 'string' ? pool : skipReason({ qemus: [version] })

  test(`QEMU ${version}: parked from huge pages, resumed on ordinary ones`, {
    skip,
    timeout: 120_000,
  }, async (t) => {
    const guest = buildRom(range)
    const vm = await startVm(t, version, {
      ...{ guest, ramMiB: RAM_MIB, machine: MACHINE, args: ['-object', ON_HUGE_PAGES] },
    })
    await vm.qemu.waitForOutput(/abc/)
    await park({ qmp: vm.qmp, path: vm.image })
    const image = openImage(vm.image)
    const stored = ramOf(image, 'm')
    image.close()
    assert.ok(stored.subarray(MiB).equals(await pmemsave(vm.qemu, MiB, (RAM_MIB - 1) * MiB)))
    const printed = vm.qemu.output()
    await vm.qemu.quit()

    const rom = join(vm.directory, 'rom')
    writeFileSync(rom, guest)
    const command = (backend: string): string[] => [
      ...[
        findQemu(version)!.path,
        '-accel',
        'tcg',
        '-machine',
        MACHINE,
        '-m',
        `${RAM_MIB}M`,
        '-object',
        backend,
      ],
      ...['-nodefaults', '-display', 'none', '-serial', 'stdio', '-bios', rom],
    ]
    await assert.rejects(
      resume(vm.image, { command: command(ON_HUGE_PAGES), console: 'collect' }),
      (error) => {
        assert(error instanceof GuestError)
        assert.match(error.message, /the RAM of this QEMU is on pages of another size/)
        return true
      },
    )
    const { qemu, done } = await resume(vm.image, { command: command(ON_ORDINARY_PAGES), console: 'collect' })
    t.after(qemu.kill)
    const report = await done
    assert.ok(report.ok, report.error)
    const next = String.fromCharCode(0x61 + (printed.length % 26))
    for (const endMs = performance.now() + 20_000; qemu.output().length < 2; await sleep(20))
      assert.ok(performance.now() < endMs, 'the guest prints nothing')
    assert.equal(qemu.output()[0], next)
    await qemu.qmp.execute('stop')
    const { wrongAt, detail } = checkRam(await pmemsave(qemu, 0, RAM_MIB * MiB), range)
    assert.equal(wrongAt, undefined, detail)
  })
}
