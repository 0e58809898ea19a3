// A parked VM goes to a real QEMU, and the connection breaks before its guest runs there: nothing is lost. The source says so,
// and the same image goes to another QEMU, whole.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { serveImage } from '../../src/index.js'
import { launchQemu, type Qemu } from '../../src/qemu/launch.js'
import { setMigrationCapabilities, waitForMigration } from '../../src/qemu/migration.js'
import { temporaryDirectory } from '../image/images.js'
import { skipReason } from '../qemu/find.js'
import { pmemsave } from '../qemu/guests.js'
import { type ParkedVm, parkVm, readPrinted } from '../resume/parked.js'
import type { Action, Fault } from './plan.js'
import { startFaultProxy } from './proxy.js'
import type { RecordKind } from './records.js'

const MiB = 1024 * 1024
const RAM_MIB = 16
const directory = temporaryDirectory({ after } as never)

/** Where it breaks, and whether the source knows by then that the guest cannot have run. */
const CUTS: readonly { kind: RecordKind; action: Action; safe: boolean }[] = [
  { kind: 'header', action: { do: 'truncate', bytes: 5 }, safe: true },
  { kind: 'POSTCOPY_ADVISE', action: { do: 'cut', by: 'fin' }, safe: true },
  { kind: 'ram-start', action: { do: 'truncate', bytes: 20 }, safe: true },
  // All that follows is with the kernel when the connection breaks: as far as the source knows, the guest may run.
  { kind: 'POSTCOPY_RAM_DISCARD', action: { do: 'cut', by: 'fin' }, safe: false },
  { kind: 'package', action: { do: 'truncate', bytes: 3000 }, safe: false },
]

async function waitingQemu(t: TestContext, vm: ParkedVm, version: string, printed: string): Promise<Qemu> {
  const [path, ...args] = vm.command(version, `file:${printed}`)
  const qemu = await launchQemu({ path: path!, args: [...args, '-incoming', 'defer'], timeoutMs: 30_000 })
  t.after(qemu.kill)
  await setMigrationCapabilities(qemu.qmp, { events: true, 'postcopy-ram': true })
  return qemu
}

async function serve(qemu: Qemu, vm: ParkedVm, plan: readonly Fault[]) {
  const uri = `unix:${join(qemu.directory, 'migration')}`
  await qemu.qmp.execute('migrate-incoming', { uri })
  const proxy = await startFaultProxy({
    listen: `unix:${join(qemu.directory, 'proxy')}`,
    to: () => uri,
    plan,
  })
  const { source } = serveImage(vm.path, {})
  await source.ready
  source.connect(proxy.uri)
  const report = await source.done
  await proxy.close()
  return { report, fired: proxy.fired.length }
}

for (const version of ['7.2', '10.0']) {
  const options = { skip: skipReason({ qemus: [version] }), timeout: 120_000 }

  test(
    `QEMU ${version}: broken before the guest runs, the image goes to the next one`,
    options,
    async (t) => {
      const vm = await parkVm(directory, version, RAM_MIB)
      const image = readFileSync(vm.path)
      const printed = join(directory, `printed-${version}`)
      for (const { kind, action, safe } of CUTS) {
        const qemu = await waitingQemu(t, vm, version, printed)
        const fault: Fault = { channel: 'main', direction: 'forward', kind, after: 0, action }
        const { report, fired } = await serve(qemu, vm, [fault])
        assert.equal(fired, 1, kind)
        assert.equal(report.ok, false, kind)
        assert.match(
          report.error!,
          safe ? /image is as it was, and can be resumed$/ : /The image is as it was/,
        )
        assert.ok(readFileSync(vm.path).equals(image), kind)
        await qemu.kill()
        assert.equal(readPrinted(printed), '', `the guest ran: ${kind}`)
      }
      const qemu = await waitingQemu(t, vm, version, printed)
      const { report } = await serve(qemu, vm, [])
      assert.ok(report.ok, report.error)
      await waitForMigration(qemu.qmp, ['completed'])
      await qemu.qmp.execute('stop')
      vm.assertRam(await pmemsave(qemu, 0, RAM_MIB * MiB))
      await qemu.quit()
      vm.assertLetters(readPrinted(printed))
    },
  )
}
