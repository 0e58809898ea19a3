// serve.child IMAGE OPTIONS: farfault as the source of a parked VM. OPTIONS: those of `serveImage`, JSON. Says `ready`; is told
// `connect URI`, and perhaps `unlimited`, by lines; says what it sent (`Moved`) at the
// end, and stays until it is stopped: what it takes may be looked at still.

import assert from 'node:assert/strict'
import { createInterface } from 'node:readline'
import { compileLess } from '../src/cli/compile-less.js'
import { type ServeOptions, serveImage } from '../src/index.js'
import type { Moved } from './sources.js'

const [image, options] = process.argv.slice(2)
compileLess() // as the command does
const { source } = serveImage(image!, JSON.parse(options!) as ServeOptions)
let before = process.cpuUsage()
const orders = createInterface({ input: process.stdin })
orders.on('line', (line) => {
  const [order, uri] = line.split(' ')
  if (order === 'connect') {
    before = process.cpuUsage()
    source.connect(uri!)
  }
  if (order === 'unlimited') source.setBandwidth({ postcopy: 0 })
})
await source.ready
console.log('ready')
const report = await source.done
assert.ok(report.ok, report.error)
const { user, system } = process.cpuUsage(before)
const moved: Moved = { bytes: report.bytes, cpuMs: (user + system) / 1000 }
console.log(JSON.stringify(moved))
