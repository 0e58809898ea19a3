// send.child PORT PAGES: the engine as the sender of the send benchmark: one pass of precopy.

import assert from 'node:assert/strict'
import { migrate, startGuest } from '../src/index.js'

const [port, pages] = process.argv.slice(2).map(Number)
const module = new URL('./bench-guest.js', import.meta.url)
const guest = await startGuest({ module, options: { pages, filled: true } })
const { ok, error } = await migrate(guest, { to: `tcp:127.0.0.1:${port}`, postcopy: 'never' }).done
assert.ok(ok, error)
await guest.destroy()
