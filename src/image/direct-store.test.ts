import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { test } from 'node:test'
import { knowsDirectIo, temporaryDirectory } from '../../test/image/images.js'

const urlOf = (file: string): string => JSON.stringify(new URL(file, import.meta.url).href)

/** Writes four MiB, and says what came of it. A signal that cannot be had in JavaScript is in the way of limits: it is ignored. */
function writeUnder(directory: string, limit: string): string {
  const code = `
    import { openSync, readFileSync } from 'node:fs'
    import { createDirectStore } from ${urlOf('./direct-store.js')}
    const path = process.argv[1]
    const store = createDirectStore(openSync(path, 'w'), path)
    try {
      for (let mib = 0; mib < 4; mib++) {
        store.slot.fill(mib + 1)
        store.put(mib * 2 ** 20, 2 ** 20)
      }
      store.settle(0, 4 * 2 ** 20)
      console.log(readFileSync(path).every((byte, at) => byte === 1 + Math.floor(at / 2 ** 20)))
    } catch (error) {
      console.log(error.message)
    }
    store.close()
    store.close()`
  const node = [process.execPath, '--input-type=module', '-e', code, join(directory, 'file')]
  const script = `trap "" XFSZ; ${limit}; exec "$0" "$@"`
  return spawnSync('sh', ['-c', script, ...node], { encoding: 'utf8', timeout: 60_000 }).stdout
}

test('what is put is in the file when it is settled', (t) => {
  const directory = temporaryDirectory(t)
  if (knowsDirectIo(t, directory)) assert.match(writeUnder(directory, 'true'), /^true$/m)
})

test('a disk that takes only some of it says so, at the latest in the end', (t) => {
  const directory = temporaryDirectory(t)
  // A limit on the length of files comes as near to a full disk as one gets without being root: 2.5 MiB.
  if (knowsDirectIo(t, directory)) assert.match(writeUnder(directory, 'ulimit -f 5120'), /EFBIG/)
})
