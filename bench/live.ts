// Live migration of a guest that never ceases to write: two QEMUs, or two processes with the engine and v86. The same program
// in both, the ROM guest; postcopy at once.

import { join } from 'node:path'
import { waitForMigration } from '../src/qemu/migration.js'
import type { QemuBinary } from '../test/qemu/find.js'
import { startTestGuest, type TestGuestOptions } from '../test/qemu/guests.js'
import type { Benchmark, Sample } from './benchmark.js'
import { moveV86 } from './downtime.js'
import { type BenchOptions, wantedQemus } from './options.js'
import { RUN_MS_MAX } from './programs.js'

/** As in `downtime`; the ROM guest writes up to 100 MiB. */
const MEBIBYTES = 128
const WRITTEN_MIB = 100
const CAPABILITIES = ['events', 'postcopy-ram', 'postcopy-blocktime']

async function moveQemu(binary: QemuBinary): Promise<Sample> {
  const options: TestGuestOptions = { guest: 'rom', ramMiB: MEBIBYTES, capabilities: CAPABILITIES }
  const source = await startTestGuest(binary, options)
  try {
    await source.waitForOutput(/ab/) // every page of its range has been written
    const destination = await startTestGuest(binary, { ...options, incoming: true })
    try {
      const uri = `unix:${join(destination.directory, 'migrate')}`
      const at = { stop: Number.NaN, resume: Number.NaN, completed: Number.NaN }
      source.qmp.on('STOP', (_, us) => {
        at.stop = us
      })
      destination.qmp.on('RESUME', (_, us) => {
        at.resume = us
      })
      destination.qmp.on('MIGRATION', ({ status }, us) => {
        if (status === 'completed') at.completed = us
      })
      await destination.qmp.execute('migrate-incoming', { uri })
      const startUs = (performance.timeOrigin + performance.now()) * 1000
      await source.qmp.execute('migrate', { uri })
      await source.qmp.execute('migrate-start-postcopy')
      const info = await waitForMigration(destination.qmp, ['completed'], { timeoutMs: RUN_MS_MAX })
      return {
        downtime: (at.resume - at.stop) / 1000,
        blocktime: info['postcopy-blocktime'] ?? Number.NaN,
        total: (at.completed - startUs) / 1000,
      }
    } finally {
      await destination.kill()
    }
  } finally {
    await source.kill()
  }
}

export function live(options: BenchOptions): readonly Benchmark[] {
  const qemus = wantedQemus(options)
  const v86 = 'engine, v86'
  const name = ({ version }: QemuBinary): string => `qemu ${version}`
  return [
    {
      name: 'live',
      about: `a guest with ${MEBIBYTES} MiB that writes to ${WRITTEN_MIB} of them all the time moves by postcopy, at once`,
      rounds: 7,
      metrics: [
        { name: 'downtime', unit: 'ms' },
        { name: 'blocktime', unit: 'ms' },
        { name: 'total', unit: 'ms' },
      ],
      variants: [
        { name: v86, run: () => moveV86('now', { mebibytes: MEBIBYTES, writtenMiB: WRITTEN_MIB }) },
        ...qemus.map((binary) => ({ name: name(binary), run: () => moveQemu(binary) })),
      ],
      ratios: qemus.map((binary) => [v86, name(binary)] as const),
    },
  ]
}
