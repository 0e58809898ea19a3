// Faults over a link of 20 ms round trip that loses one packet of a hundred: the guest comes over whole, and nobody
// waits for ever. How long the faults take is reported, not judged: the machine may be busy.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { postcopySkipReason } from '../engine/host.js'

const TOOL = fileURLToPath(new URL('./lossy.js', import.meta.url))
const TIMEOUT_MS = 240_000
const ROUND_TRIP_MS = 20

function skipReason(): string | false {
  const reason = postcopySkipReason()
  if (reason !== false) return reason
  if (!existsSync('/dev/net/tun')) return 'no /dev/net/tun on this machine'
  const { status } = spawnSync('unshare', ['--net', 'ip', 'link', 'set', 'lo', 'up'])
  return status === 0 ? false : 'no right to make a network namespace, or no iproute2'
}

function run(...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const child = spawn('unshare', ['--net', process.execPath, TOOL, ...args], { timeout: TIMEOUT_MS - 10_000 })
  let out = ''
  let err = ''
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, out, err })))
}

const options = { skip: skipReason(), timeout: TIMEOUT_MS }

// Side by side: one of them does little but wait.
describe('a link of its own', { concurrency: true }, () => {
  test('a guest goes over a slow link with loss', options, async (t) => {
    const { code, out, err } = await run('--delay-ms', `${ROUND_TRIP_MS / 2}`, '--loss', '1', '--mib', '4')
    assert.equal(code, 0, err)
    const { faults, faultMs, lost, packets } = JSON.parse(out)
    t.diagnostic(
      `${faults} faults, p50 ${faultMs.p50} ms, p99 ${faultMs.p99} ms; ${lost} of ${packets} packets lost`,
    )
    assert(faults > 0 && lost > 0)
    assert(faultMs.p50 >= ROUND_TRIP_MS * 0.8, 'faults are faster than the link')
    assert(faultMs.max < 10_000)
  })

  test('a link that says nothing any more is noticed at both ends', options, async (t) => {
    const { code, out, err } = await run('--dead-after-ms', '1000', '--bandwidth', '100000', '--loss', '0')
    assert.equal(code, 0, err)
    const { source, destination } = JSON.parse(out)
    t.diagnostic(`the source after ${source.afterMs} ms, the destination after ${destination.afterMs} ms`)
    for (const { error, afterMs } of [source, destination]) {
      assert.match(error, /connection lost|has said nothing/)
      assert(afterMs < 60_000, `${error} after ${afterMs} ms`)
    }
  })
})
