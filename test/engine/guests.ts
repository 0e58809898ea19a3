// Guests, migrations between two of them in this process, and what must hold afterwards.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { PatternOptions } from '../../src/guest/pattern.js'
import {
  type GuestHandle,
  type Incoming,
  type MigrateOptions,
  type Migration,
  migrate,
  type Received,
  type ReceiveOptions,
  receive,
  type SourceReport,
  startGuest,
} from '../../src/index.js'
import type { BaseStream } from './base-streams.js'

export const MiB = 1024 * 1024

/** A running pattern guest: random walk, half of the steps write, all of its RAM written once before. */
export async function startPattern(options: Partial<PatternOptions> = {}): Promise<GuestHandle> {
  const blocks = options.blocks ?? [
    { name: 'a', length: 16 * MiB },
    { name: 'b', length: 2 * MiB },
  ]
  const bytes = blocks.reduce((sum, { length }) => sum + length, 0)
  const guest = await startGuest({
    module: 'pattern',
    options: {
      pattern: 'random',
      seed: 7,
      writeRatio: 0.5,
      initialPages: options.touchedPages ?? bytes / 4096,
      ...options,
      blocks,
    },
  })
  await guest.start()
  return guest
}

export interface Ends {
  readonly migration: Migration
  readonly incoming: Incoming
}

/** A migration under way; the destination's guest is made by the same module. */
export function begin(
  guest: GuestHandle,
  module: 'pattern' | 'v86' | URL,
  options: Omit<MigrateOptions, 'to'> & { listen?: string; guest?: ReceiveOptions['guest'] } = {},
): Ends {
  const { listen = 'tcp:127.0.0.1:0', guest: makeGuest, ...migrateOptions } = options
  const incoming = receive({
    listen,
    guest: makeGuest ?? ((machine, blocks) => startGuest({ module, incoming: { machine, blocks } })),
  })
  return { incoming, migration: migrate(guest, { to: incoming.uri, ...migrateOptions }) }
}

export interface Outcome {
  readonly source: SourceReport & { readonly cause?: Error }
  readonly destination: Received
}

export async function outcomeOf({ migration, incoming }: Ends): Promise<Outcome> {
  const [source, destination] = await Promise.all([migration.done, incoming.done])
  return { source, destination }
}

/** Both ends are content, and the guest over there runs. */
export function assertMoved({ source, destination }: Outcome): GuestHandle {
  assert.equal(source.error, undefined)
  assert.equal(destination.report.error, undefined)
  assert.equal(source.status, 'completed')
  assert.equal(destination.report.status, 'completed')
  assert(destination.guest)
  return destination.guest
}

export async function assertProgress(guest: GuestHandle, withinMs = 5000): Promise<void> {
  const before = guest.progress()
  for (const endMs = performance.now() + withinMs; performance.now() < endMs; await sleep(10)) {
    if (guest.progress() > before) return
  }
  assert.fail(`the guest made no progress within ${withinMs} ms`)
}

/** The guest runs, stops, and its RAM holds what it wrote. Then it is destroyed. */
export async function assertSoundAndEnd(guest: GuestHandle): Promise<void> {
  await assertProgress(guest)
  await guest.stop()
  const { ok, detail } = await guest.check()
  assert(ok, detail)
  await guest.destroy()
}

/** Resolves when the migration comes into one of these states. */
export async function status(ends: { readonly status: string }, ...wanted: string[]): Promise<void> {
  for (const endMs = performance.now() + 20_000; performance.now() < endMs; await sleep(1)) {
    if (wanted.includes(ends.status)) return
  }
  assert.fail(`still "${ends.status}", not ${wanted.join(' or ')}`)
}

/** A stream up to and with the package: whoever takes it in has a running guest, and no RAM for it. */
export function upToPackage(bases: readonly BaseStream[]): Uint8Array {
  const { pieces } = bases.find(({ name }) => name === 'postcopy at once')!
  const packaged = pieces.findIndex(([record, , command]) => record === 8 && command === 7)
  return Buffer.concat(pieces.slice(0, packaged + 2))
}
