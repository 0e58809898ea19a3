// A process can end at any time, at once and with its own exit code, whatever its threads wait for.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { postcopySkipReason } from './host.js'

const skip = postcopySkipReason()
const START_MS_MAX = 60_000
/** From the moment the process wants to end: it joins five threads. */
const END_MS_MAX = 15_000

interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly errors: string
  /** From the first line of output to the end. */
  readonly tookMs: number
}

/** Runs a fixture to its end; kills it when that does not come. */
async function runToEnd(fixture: string, argument: string): Promise<Ended> {
  const path = fileURLToPath(new URL(`./${fixture}.fixture.js`, import.meta.url))
  const child = spawn(process.execPath, [path, argument], { stdio: ['ignore', 'pipe', 'pipe'] })
  let saidMs = 0
  let errors = ''
  let killer = setTimeout(() => child.kill('SIGKILL'), START_MS_MAX)
  child.stdout.once('data', () => {
    saidMs = performance.now()
    clearTimeout(killer)
    killer = setTimeout(() => child.kill('SIGKILL'), END_MS_MAX)
  })
  child.stderr.on('data', (text) => {
    errors += text
  })
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
    child.once('close', (...ended) => resolve(ended)),
  )
  clearTimeout(killer)
  assert(saidMs > 0, `it did not come so far: code ${code}, ${errors}`)
  return { code, signal, errors, tookMs: performance.now() - saidMs }
}

function assertEnded({ code, signal, errors, tookMs }: Ended, expected: number): void {
  assert.equal(signal, null, `still there after ${tookMs} ms`)
  assert.equal(code, expected, errors)
}

test('process.exit while the guest waits for a page', { skip, timeout: 120_000 }, async () => {
  assertEnded(await runToEnd('stalled', 'exit'), 3)
})

for (const [way, message] of [
  ['throw', /nobody catches this/],
  ['reject', /nobody handles this/],
] as const) {
  test(`an uncaught error (${way}) while the guest waits for a page`, {
    skip,
    timeout: 120_000,
  }, async () => {
    const ended = await runToEnd('stalled', way)
    assertEnded(ended, 1)
    assert.match(ended.errors, message)
  })
}

for (const phase of ['precopy', 'postcopy']) {
  test(`process.exit during ${phase}, with both ends in the process`, {
    skip,
    timeout: 120_000,
  }, async () => {
    assertEnded(await runToEnd('migrating', phase), 4)
  })
}
