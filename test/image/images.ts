// Saving a QEMU's guest to a file, temporary directories, and RAM of an image as bytes. For tests.

import assert from 'node:assert/strict'
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { cachedMiB, dropFromCache } from '../../bench/process-facts.js'
import type { Image } from '../../src/image/image.js'
import type { Qemu } from '../../src/qemu/launch.js'
import { setMigrationCapabilities, waitForMigration } from '../../src/qemu/migration.js'

export const MiB = 1024 * 1024

/** A directory that is removed with the test. */
export function temporaryDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-image-'))
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** Save the guest to a file; it is stopped afterwards. */
export async function save(source: Qemu, uri: string, capabilities: readonly string[] = []): Promise<void> {
  // With a return path QEMU would wait for an answer that no file gives.
  const on = Object.fromEntries(capabilities.map((name) => [name, true]))
  await setMigrationCapabilities(source.qmp, { 'postcopy-ram': false, ...on })
  await source.qmp.execute('migrate', { uri })
  await waitForMigration(source.qmp, ['completed'])
}

/** A block's RAM as the image says it is: absent pages are zero. */
export function ramOf(image: Image, name: string): Buffer {
  const block = image.blocks.find((each) => each.name === name)
  assert(block, `no block ${name}`)
  const bytes = Buffer.alloc(block.length)
  for (let page = block.present.nextSet(0); page >= 0; ) {
    const at = page * block.pageSize
    readSync(image.fd, bytes, at, block.pageSize, block.pagesOffset + at)
    page = page + 1 < block.present.length ? block.present.nextSet(page + 1) : -1
  }
  return bytes
}

/** The file system of `directory` knows O_DIRECT; elsewhere the test is skipped. */
export function knowsDirectIo(t: TestContext, directory: string): boolean {
  try {
    closeSync(
      openSync(join(directory, 'direct'), constants.O_CREAT | constants.O_WRONLY | constants.O_DIRECT),
    )
    return true
  } catch {
    t.skip('the file system of TMPDIR does not know O_DIRECT')
    return false
  } finally {
    rmSync(join(directory, 'direct'), { force: true })
  }
}

/** The page cache has nothing of it any more; false, and the test is skipped, where it is all there is of the file. */
export function dropped(t: TestContext, path: string): boolean {
  dropFromCache(path)
  if (cachedMiB(path) === 0) return true
  t.skip('the file is in memory only: TMPDIR is a tmpfs')
  return false
}
