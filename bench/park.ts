// Parking: the state of a QEMU with a gigabyte of RAM that is not zero goes into an image, against the same QEMU saving to a
// file through `exec:`, which neither checks nor, without `sync`, waits for the disk.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { buildRom, romRange } from '../src/guest/rom.js'
import type { Qemu } from '../src/qemu/launch.js'
import { waitForMigration } from '../src/qemu/migration.js'
import { findQemus, type QemuBinary } from '../test/qemu/find.js'
import { startTestGuest } from '../test/qemu/guests.js'
import type { Benchmark, Sample, Variant } from './benchmark.js'
import { prepareToSave, wakeUp } from './stored-vm.js'

const MiB = 2 ** 20
const RAM_MIB = 1024
const MAIN = fileURLToPath(new URL('../src/cli/main.js', import.meta.url))
const FILL_MS_MAX = 120_000
const SAVE_MS_MAX = 120_000
/**
 * Before each run, ms. A virtual machine gives memory that has been free for a moment back to its host, and gets it slowly
 * again: the file of the run before must not be the next one's memory for some, and lost for others.
 */
const SETTLE_MS = 4000

interface Vm {
  readonly qemu: Qemu
  readonly directory: string
}

const vms = new Map<string, Promise<Vm>>()

/** One for all rounds: what is compared is the same QEMU. Its guest has written to every page, and stands still. */
async function startVm(binary: QemuBinary): Promise<Vm> {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-bench-park-'))
  const qemu = await startTestGuest(binary, {
    guest: buildRom(romRange(RAM_MIB * MiB, 1 * MiB, RAM_MIB * MiB)),
    ramMiB: RAM_MIB,
    capabilities: ['events'],
    args: ['-qmp', `unix:${join(directory, 'qmp')},server=on,wait=off`],
  })
  await qemu.waitForOutput(/a/, { timeoutMs: FILL_MS_MAX })
  await qemu.qmp.execute('stop')
  return { qemu, directory }
}

function vmOf(binary: QemuBinary): Promise<Vm> {
  const vm = vms.get(binary.version) ?? startVm(binary)
  vms.set(binary.version, vm)
  return vm
}

async function endVms(): Promise<void> {
  for (const vm of vms.values()) {
    const { qemu, directory } = await vm
    await qemu.quit()
    rmSync(directory, { recursive: true, force: true })
  }
}

interface ParkSideReport {
  readonly durationMs: number
}

async function park(vm: Vm, ...options: readonly string[]): Promise<Sample> {
  const image = join(vm.directory, 'vm.img')
  const startMs = performance.now()
  const args = [MAIN, 'park', image, '--qmp', join(vm.directory, 'qmp'), '--json', ...options]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], timeout: SAVE_MS_MAX })
  let said = ''
  child.stdout.on('data', (bytes) => {
    said += bytes
  })
  const [status] = await once(child, 'close')
  const command = performance.now() - startMs
  if (status !== 0) throw new Error(`farfault park ended with ${status}`)
  const { durationMs } = JSON.parse(said) as ParkSideReport
  const disk = (statSync(image).blocks * 512) / MiB
  rmSync(image)
  rmSync(`${image}.json`)
  await wakeUp(vm.qemu)
  return { save: durationMs, command, disk }
}

/** `then`: what the shell does when all has come. */
async function saveByShell(vm: Vm, then: (file: string) => string): Promise<Sample> {
  const { qemu, directory } = vm
  const file = join(directory, 'saved')
  const finished = join(directory, 'finished')
  await prepareToSave(qemu)
  const startMs = performance.now()
  await qemu.qmp.execute('migrate', { uri: `exec:cat > ${file}${then(file)}; touch ${finished}` })
  await waitForMigration(qemu.qmp, ['completed'], { timeoutMs: SAVE_MS_MAX })
  while (statSync(finished, { throwIfNoEntry: false }) === undefined) await sleep(1)
  const save = performance.now() - startMs
  const disk = (statSync(file).blocks * 512) / MiB
  rmSync(file)
  rmSync(finished)
  await wakeUp(qemu)
  return { save, command: save, disk }
}

function variantsOf(binary: QemuBinary): readonly Variant[] {
  const of = (name: string, run: (vm: Vm) => Promise<Sample>): Variant => ({
    name: `${name}, ${binary.version}`,
    run: async () => {
      const vm = await vmOf(binary)
      await sleep(SETTLE_MS)
      return run(vm)
    },
  })
  return [
    of('park', (vm) => park(vm)),
    of('cat', (vm) => saveByShell(vm, () => '')),
    of('cat+sync', (vm) => saveByShell(vm, (file) => `; sync ${file}`)),
    ...(binary.version === '7.2' ? [] : [of('native', (vm) => park(vm, '--native'))]),
  ]
}

const qemus = findQemus()

export const parking: Benchmark = {
  name: 'park',
  about: `a QEMU with ${RAM_MIB} MiB of RAM that is not zero goes into a file`,
  rounds: 5,
  metrics: [
    { name: 'save', unit: 'ms' },
    { name: 'command', unit: 'ms' },
    { name: 'disk', unit: 'MiB' },
  ],
  variants: qemus.flatMap(variantsOf),
  ratios: qemus.flatMap(({ version }) => [
    [`park, ${version}`, `cat, ${version}`] as const,
    [`park, ${version}`, `cat+sync, ${version}`] as const,
  ]),
  finish: endVms,
}
