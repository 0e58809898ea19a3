// A conversion that is killed leaves nothing that looks like an image; the next one clears up and goes through.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { convertStream } from '../../src/image/convert.js'
import { openImage } from '../../src/image/image.js'
import { temporaryDirectory } from './images.js'
import { savedStream } from './saved.js'

/** Writes pages until it is killed; says a word when it has begun. */
const SCRIPT = `
  import { createImageWriter } from ${JSON.stringify(new URL('../../src/image/writer.js', import.meta.url).href)}
  const blocks = [{ name: 'ram', length: 2 ** 30 }]
  const writer = createImageWriter(process.argv[1], { configuration: { machine: 'm' }, blocks, ramSectionId: 1 })
  const pages = new Uint8Array(256 * 4096).fill(1)
  for (let page = 0; ; page = (page + 256) % 2048) {
    writer.writeRun(0, page, pages, 0, 256)
    if (page === 1024) process.stdout.write('.')
    await new Promise((resolve) => setTimeout(resolve, 1))
  }`

test('a killed writer leaves no image', { timeout: 90_000 }, async (t) => {
  const directory = temporaryDirectory(t)
  const path = join(directory, 'vm.img')
  const child = spawn(process.execPath, ['--input-type=module', '-e', SCRIPT, path], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.after(() => child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  child.kill('SIGKILL')
  await once(child, 'exit')
  assert.equal(existsSync(path), false)
  const [left, ...more] = readdirSync(directory)
  assert.deepEqual([left, more], [`.vm.img.${child.pid}.partial`, []])
  assert.throws(() => openImage(join(directory, left!)), { code: 'IMAGE' })
  assert.notEqual(readFileSync(join(directory, left!)).toString('latin1', 0, 4), 'QEVM')

  await convertStream(savedStream(directory, '7.2-precopy'), path)
  openImage(path, { requireSidecar: true }).close()
  assert.deepEqual(readdirSync(directory).sort(), ['7.2-precopy', 'vm.img', 'vm.img.json'])
})
