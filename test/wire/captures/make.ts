// Makes the captures anew: npm run build && node dist/test/wire/captures/make.js && npx biome check --write test/wire/captures
//
// The guest is the ROM guest with a small range, so that a stream has zero pages, data pages and, in postcopy, page
// requests, and is still short: a zero page costs 9 bytes, and a page with one byte in it compresses to little.

import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { buildRom, romRange } from '../../../src/guest/rom.js'
import type { Qemu } from '../../../src/qemu/launch.js'
import { waitForMigration } from '../../../src/qemu/migration.js'
import { findQemus, type QemuBinary } from '../../qemu/find.js'
import { pmemHash, startTestGuest, type TestGuestOptions } from '../../qemu/guests.js'
import { type Relay, startRelay } from '../../qemu/relay.js'
import { CAPTURES_DIRECTORY, type Capture, type CaptureBytes, captureFile } from './captures.js'

const MiB = 1024 * 1024
const KiB = 1024
const RAM_MIB = 4
const RAM_BYTES = RAM_MIB * MiB
const ROM = buildRom(romRange(RAM_BYTES, 1 * MiB, 1 * MiB + 256 * KiB))
const GZIP = { level: 9 } as const

interface Recipe {
  readonly name: string
  readonly how: string
  /** Only these versions have it; default all. */
  readonly versions?: readonly string[]
  readonly machine: string
  readonly capabilities: readonly string[]
  make(source: Qemu, qemu: QemuBinary, options: TestGuestOptions): Promise<readonly CaptureBytes[]>
}

const RECIPES: readonly Recipe[] = [
  {
    name: 'precopy',
    how: 'stopped guest to a file; ends with the JSON description',
    machine: 'microvm',
    capabilities: ['events'],
    make: (source) => saveToFile(source, (file) => `exec:cat > ${file}`),
  },
  {
    name: 'precopy-pc',
    how: 'stopped guest to a file; ends with the JSON description',
    machine: 'pc-i440fx-7.2',
    capabilities: ['events'],
    make: (source) => saveToFile(source, (file) => `exec:cat > ${file}`),
  },
  {
    name: 'mapped-ram',
    how: 'stopped guest to a file in the mapped-ram format',
    versions: ['10.0'],
    machine: 'pc-i440fx-7.2',
    capabilities: ['events', 'mapped-ram'],
    make: (source) => saveToFile(source, (file) => `file:${file}`),
  },
  {
    name: 'postcopy',
    how: 'running guest, switched at once, to a QEMU of the same version through a recording relay',
    machine: 'pc-i440fx-7.2',
    capabilities: ['events', 'postcopy-ram'],
    make: (source, qemu, options) =>
      throughRelay(source, qemu, options, async (uri) => {
        // So slow that the switch comes before precopy has got anywhere; it does not hold in postcopy.
        await execute(source, 'migrate-set-parameters', { 'max-bandwidth': 4 * KiB })
        await execute(source, 'migrate', { uri })
        await execute(source, 'migrate-start-postcopy')
      }),
  },
  {
    name: 'postcopy-recover',
    how: 'as postcopy, after a little precopy, and slowly; the relay cuts the connection in the middle, and both ends recover through a second one',
    machine: 'pc-i440fx-7.2',
    capabilities: ['events', 'postcopy-ram'],
    make: (source, qemu, options) => throughRelay(source, qemu, options, cutAndRecover(source)),
  },
]

/** QMP commands given to the source of the capture in hand, for the manifest. */
let commands: string[] = []

async function execute(source: Qemu, command: string, args: Readonly<Record<string, unknown>> = {}) {
  commands.push(Object.keys(args).length > 0 ? `${command} ${JSON.stringify(args)}` : command)
  await source.qmp.execute(command, args)
}

async function saveToFile(source: Qemu, uri: (file: string) => string): Promise<CaptureBytes[]> {
  const file = join(source.directory, 'saved')
  await execute(source, 'stop')
  await execute(source, 'migrate', { uri: uri(file) })
  await waitForMigration(source.qmp, ['completed'])
  return [{ forward: readFileSync(file), back: Buffer.alloc(0) }]
}

type Conduct = (uri: string, relay: Relay, destination: Qemu) => Promise<void>

async function throughRelay(source: Qemu, qemu: QemuBinary, options: TestGuestOptions, conduct: Conduct) {
  const destination = await startTestGuest(qemu, { ...options, incoming: true })
  const arrivals = [0, 1].map((index) => join(destination.directory, `migration-${index}`))
  const relayPath = join(source.directory, 'relay')
  const relay = await startRelay(relayPath, () => arrivals[relay.recordings.length - 1]!)
  const switched = destination.qmp.waitForEvent('MIGRATION', {
    where: ({ status }) => status === 'postcopy-active',
  })
  try {
    await destination.qmp.execute('migrate-incoming', { uri: `unix:${arrivals[0]}` })
    await conduct(`unix:${relayPath}`, relay, destination)
    await waitForMigration(source.qmp, ['completed'])
    await waitForMigration(destination.qmp, ['completed'])
    await switched
    return relay.recordings.map(({ forward, back }) => ({
      forward: Buffer.concat(forward),
      back: Buffer.concat(back),
    }))
  } finally {
    relay.close()
    await destination.kill()
  }
}

function cutAndRecover(source: Qemu): Conduct {
  return async (uri, relay, destination) => {
    const slow = { 'max-bandwidth': 256 * KiB, 'max-postcopy-bandwidth': 128 * KiB }
    await execute(source, 'migrate-set-parameters', slow)
    const resumed = destination.qmp.waitForEvent('RESUME')
    await execute(source, 'migrate', { uri })
    await execute(source, 'migrate-start-postcopy')
    await resumed
    const afterResume = relay.forwardBytes()
    while (relay.forwardBytes() < afterResume + 32 * KiB)
      await new Promise((resolve) => setTimeout(resolve, 10))
    relay.cut()
    await waitForMigration(source.qmp, ['postcopy-paused'])
    await waitForMigration(destination.qmp, ['postcopy-paused'])
    const address = { uri: `unix:${join(destination.directory, 'migration-1')}` }
    await destination.qmp.execute('migrate-recover', address, { oob: true })
    await execute(source, 'migrate-set-parameters', { 'max-postcopy-bandwidth': 0 })
    await execute(source, 'migrate', { uri, resume: true })
  }
}

async function makeCapture(recipe: Recipe, qemu: QemuBinary): Promise<Capture> {
  const { machine, capabilities } = recipe
  const options: TestGuestOptions = { guest: ROM, ramMiB: RAM_MIB, machine, capabilities }
  const source = await startTestGuest(qemu, options)
  try {
    commands = [`capabilities on: ${capabilities.join(', ')}`]
    await source.waitForOutput(/abc/)
    const parts = await recipe.make(source, qemu, options)
    const { major, minor, micro } = source.qmp.version
    const name = `${qemu.version}-${recipe.name}`
    parts.forEach(({ forward, back }, index) => {
      writeFileSync(captureFile(name, index, 'forward'), gzipSync(forward, GZIP))
      if (back.length > 0) writeFileSync(captureFile(name, index, 'back'), gzipSync(back, GZIP))
    })
    return {
      name,
      qemu: `${major}.${minor}.${micro}`,
      how: recipe.how,
      commandLine:
        `-accel tcg -machine ${machine} -m ${RAM_MIB}M -nodefaults -display none -bios <rom-guest>`.split(
          ' ',
        ),
      qmp: commands.map((command) => command.replaceAll(source.directory, '<directory>')),
      ramBytes: RAM_BYTES,
      ramAbove1MiBSha256: await pmemHash(source, 1 * MiB, RAM_BYTES - 1 * MiB),
      connections: parts.map(({ forward, back }) => ({
        forwardBytes: forward.length,
        backBytes: back.length,
      })),
    }
  } finally {
    await source.kill()
  }
}

const captures: Capture[] = []
for (const qemu of findQemus()) {
  for (const recipe of RECIPES) {
    if (recipe.versions !== undefined && !recipe.versions.includes(qemu.version)) continue
    const capture = await makeCapture(recipe, qemu)
    captures.push(capture)
    console.log(`${capture.name}: ${JSON.stringify(capture.connections)}`)
  }
}
const romSha256 = createHash('sha256').update(ROM).digest('hex')
const manifest = { made: 'node dist/test/wire/captures/make.js', romSha256, captures }
writeFileSync(join(CAPTURES_DIRECTORY, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`)
