import assert from 'node:assert/strict'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { temporaryDirectory } from '../../test/image/images.js'
import { createAsyncWrites } from './async-writes.js'
import { errnoOf } from './libc.js'
import { mapAnonymous, memset } from './mapping.js'

const PAGE = 4096

function setUp(t: TestContext, pages: number) {
  const path = join(temporaryDirectory(t), 'file')
  const fd = openSync(path, 'w')
  const memory = mapAnonymous(pages * PAGE)
  const writes = createAsyncWrites(pages)
  t.after(() => {
    writes.close()
    writes.close()
    memory.unmap()
    closeSync(fd)
  })
  return { fd, path, memory, writes }
}

test('each write goes to its place, and is known by its tag', (t) => {
  const { fd, path, memory, writes } = setUp(t, 8)
  for (let i = 0; i < 8; i++) {
    memset(memory.address + i * PAGE, i + 1, PAGE)
    writes.begin(fd, memory.address + i * PAGE, PAGE, (7 - i) * PAGE, i)
  }
  const results = new Map<number, number>()
  while (results.size < 8) writes.wait((tag, result) => results.set(tag, result))
  assert.deepEqual(
    [...results].sort(([a], [b]) => a - b),
    Array.from({ length: 8 }, (_, i) => [i, PAGE]),
  )
  const bytes = readFileSync(path)
  for (let i = 0; i < 8; i++) assert.equal(bytes[i * PAGE], 8 - i)
})

test('what cannot be written is told by its errno', (t) => {
  const { fd, memory, writes } = setUp(t, 1)
  assert.throws(() => writes.begin(9999, memory.address, PAGE, 0, 0), /io_submit: EBADF/)
  let errno = 0
  writes.begin(fd, 4096, PAGE, 0, 0) // no memory of ours
  writes.wait((_, result) => {
    errno = -result
  })
  assert.equal(errno, errnoOf('EFAULT'))
})
