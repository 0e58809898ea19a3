import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import test from 'node:test'
import { runFirst, threadNamed } from './scheduling.js'

/** No process has it: above the highest that Linux gives. */
const NOBODY = 2 ** 22 + 1

test('a thread by its name', () => {
  assert.equal(threadNamed(process.pid, ['no such thread']), undefined)
  assert.equal(threadNamed(process.pid, [process.title, 'node', 'MainThread']), process.pid)
  assert.equal(threadNamed(NOBODY, ['init', 'systemd']), undefined)
})

test('a thread that has ended does not run first, and that is no error', { timeout: 10_000 }, async () => {
  const child = spawn('true')
  await once(child, 'exit')
  assert.equal(runFirst(child.pid!), false)
})
