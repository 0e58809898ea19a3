import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import test from 'node:test'
import { SystemError } from '../errors.js'
import { check, errnoName, libc } from './libc.js'

test('check names call, errno and detail', () => {
  const failing = () => check('close', libc().close(-1), 'descriptor -1')
  assert.throws(failing, new SystemError('close', 'EBADF', 'descriptor -1'))
  assert.equal(check('close', 5), 5)
})

test('errno names are those of the manual pages', () => {
  assert.deepEqual([4, 11, 17, 22, 95, 4095].map(errnoName), [
    'EINTR',
    'EAGAIN',
    'EEXIST',
    'EINVAL',
    'EOPNOTSUPP',
    'errno 4095',
  ])
})

test('another platform: importing works, the first use says what is needed', { timeout: 60_000 }, () => {
  const modules = [
    'channel',
    'mapping',
    'pagemap',
    'probe',
    'userfaultfd',
    'userfaultfd-events',
    'wake',
    'poll',
    'clock',
  ]
  const program = `
    Object.defineProperty(process, 'platform', { value: 'darwin' })
    for (const name of ${JSON.stringify(modules)}) await import(new URL(name + '.js', ${JSON.stringify(import.meta.url)}))
    const { probeHost } = await import(new URL('probe.js', ${JSON.stringify(import.meta.url)}))
    try { probeHost() } catch (error) { console.log(error.code, error.message) }`
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    encoding: 'utf8',
  })
  assert.equal(stderr, '')
  assert.match(stdout, /^HOST_UNSUPPORTED farfault needs Linux: .* this is darwin$/m)
})
