// place.child PAGES: the engine as the receiver of the place benchmark. Prints its port, takes one migration in, and ends.

import assert from 'node:assert/strict'
import { receive, startGuest } from '../src/index.js'
import { untilRehearsed } from './rehearsed.js'

const module = new URL('./bench-guest.js', import.meta.url)
const pages = Number(process.argv[2])
const incoming = receive({
  listen: 'tcp:127.0.0.1:0',
  guest: () => startGuest({ module, options: { pages } }),
})
await untilRehearsed()
console.log(incoming.uri.split(':').pop())
const { guest, report } = await incoming.done
assert.ok(guest !== undefined, report.error)
const { ok, detail } = await guest.check()
assert.ok(ok, detail)
await guest.destroy()
