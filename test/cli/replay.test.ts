// `farfault replay` and `farfault inspect` on a working set, as a user sees them.

import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { createDemand } from '../../src/image/demand.js'
import { openImage } from '../../src/image/image.js'
import { workingSetPath } from '../../src/image/sidecar.js'
import { ORDERS } from '../../src/index.js'
import { temporaryDirectory } from '../image/images.js'
import { makeImage } from '../image/saved.js'
import { farfault } from './farfault.js'

async function recorded(t: Parameters<typeof temporaryDirectory>[0]) {
  const { path } = await makeImage(temporaryDirectory(t))
  const image = openImage(path)
  const demand = createDemand(image, { push: false })
  image.close()
  const pages = Uint32Array.from({ length: 100 }, (_, i) => (i * 7) % 1000)
  const atUs = pages.map((_, i) => 2000 + 150 * i)
  demand.take({ pages, atUs, late: 0, ahead: 0, bytesPerSecond: 0, loadedMs: 3, settled: true })
  return { path, file: workingSetPath(path) }
}

async function run(...args: string[]) {
  const command = farfault(...args)
  const { code } = await command.ended
  return { code, out: command.out, err: command.err }
}

test('replay compares all orders, for people and for programs', { timeout: 60_000 }, async (t) => {
  const { file } = await recorded(t)
  const text = await run('replay', file, '--bandwidth', '50M')
  assert.equal(text.code, 0, text.err)
  assert.match(text.out, /100 pages within 16\.9 ms; a fault took 150 µs/)
  for (const order of ['on-demand', ...Object.keys(ORDERS)])
    assert.match(text.out, new RegExp(`^ +${order} `, 'm'))
  const json = await run('replay', file, '--json', '--round-trip', '20ms')
  const { orders, roundTripMs } = JSON.parse(json.out)
  assert.equal(roundTripMs, 20)
  assert.equal(orders[0].faults, 100)
  assert.ok(orders[0].stallMs > 2000, 'each of them waits for the link')
})

test('inspect shows the working set', { timeout: 60_000 }, async (t) => {
  const { path, file } = await recorded(t)
  const { out } = await run('inspect', path)
  assert.match(out, /working set {3}100 pages in 100 ranges, 400 KiB, within 16\.9 ms/)
  assert.match(out, /1 record; the last at .*, order on-demand/)
  writeFileSync(file, '{}')
  const damaged = await run('inspect', path)
  assert.equal(damaged.code, 0, 'the image is whole without it')
  assert.match(damaged.out, /working set {3}of no use: .*workingset\.json/)
})

test('what cannot be replayed is refused with the reason', { timeout: 60_000 }, async (t) => {
  const { path, file } = await recorded(t)
  const absent = await run('replay', `${file}.no`)
  assert.equal(absent.code, 2)
  assert.match(absent.err, /there is no .*\.no/)
  assert.equal((await run('replay', path)).code, 0, 'an image stands for its working set')
  const other = await run('replay', `${path}.json`)
  assert.equal(other.code, 1)
  assert.match(other.err, /working set field /)
  assert.equal((await run('replay', file, '--around-pages', '3')).code, 2)
})
