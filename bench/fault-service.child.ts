// fault-service.child PAGES SEED LIBRARY: the engine's part of the fault benchmark, source and destination in one process.
// Prints a JSON array: nanoseconds of each touch, in order.

import assert from 'node:assert/strict'
import { migrate, receive, startGuest } from '../src/index.js'
import type { BenchGuestOptions } from './bench-guest.js'
import { untilRehearsed } from './rehearsed.js'

/** So little that after the first chunk nothing is pushed: every page is asked for. */
const PUSH_BYTES_PER_SECOND = 1000

const module = new URL('./bench-guest.js', import.meta.url)
const [pages, seed] = process.argv.slice(2, 4).map(Number) as [number, number]
const library = process.argv[4]!
const guest = (options: BenchGuestOptions) => startGuest({ module, options })

const incoming = receive({
  listen: 'tcp:127.0.0.1:0',
  guest: () => guest({ pages, touch: { code: library, seed } }),
})
const samples = new Promise<Uint32Array>((resolve) => {
  incoming.on('guest', (arrived) => arrived.on('output', (bytes) => resolve(new Uint32Array(bytes.buffer))))
})
const source = await guest({ pages, filled: true })
await untilRehearsed()
const migration = migrate(source, {
  to: incoming.uri,
  postcopy: 'now',
  maxPostcopyBandwidth: PUSH_BYTES_PER_SECOND,
})
const ended = Promise.all([migration.done, incoming.done])
const failed = ended.then(([{ ok, error }]) => (ok ? samples : assert.fail(`ended early: ${error}`)))
const ns = await Promise.race([samples, failed])
migration.setBandwidth({ postcopy: 0 })
const [, received] = await ended
assert.ok(received.guest !== undefined, received.report.error)
const { ok, detail } = await received.guest.check()
assert.ok(ok, detail)
console.log(JSON.stringify(Array.from(ns)))
await received.guest.destroy()
await source.destroy()
