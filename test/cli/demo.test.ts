// The demo as the README shows it, and the two commands between two shells.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { farfault } from './farfault.js'

const limit = { timeout: 120_000 }

test('the demo is right, and says so', limit, async () => {
  const run = farfault('demo')
  assert.equal((await run.ended).code, 0, run.out + run.err)
  assert.match(run.out, /no gap, no repeat {2}…[a-z]+\|[a-z]*…/)
  assert.match(run.out, /RAM check +right/)
  assert.match(run.out, /went over while it ran/)
  assert.ok(!run.out.includes('\x1b'), 'escape sequences where there is no terminal')
})

for (const postcopy of ['now', 'auto', 'never']) {
  test(`demo --json --postcopy ${postcopy}`, limit, async () => {
    const options = ['--guest=pattern', '--rate=2000', '--memory=64M', '--downtime-limit=200ms']
    const run = farfault('demo', '--json', `--postcopy=${postcopy}`, ...options)
    const { code } = await run.ended
    const report = JSON.parse(run.out)
    assert.deepEqual(report.problems, [])
    assert.equal(code, 0)
    assert.equal(report.ok, true)
    assert.equal(report.ramCheck.ok, true)
    for (const name of ['downtimeMs', 'totalMs', 'faults', 'blocktimeMs', 'bytes']) {
      assert.equal(typeof report[name], 'number', name)
    }
    assert.ok(report.downtimeMs > 0 && report.downtimeMs < report.totalMs)
    assert.deepEqual(Object.keys(report.pages), ['normal', 'zero', 'requested'])
    assert.deepEqual(Object.keys(report.faultLatencyUs), ['p50', 'p99', 'max'])
    if (postcopy === 'never') assert.equal(report.mode, 'precopy')
    if (postcopy === 'now') assert.ok(report.mode === 'postcopy' && report.faults > 0)
  })
}

test('receive and migrate over a unix socket', limit, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-'))
  try {
    const uri = `unix:${join(directory, 'guest.sock')}`
    const destination = farfault('receive', '--listen', uri, '--run-for', '300ms', '--serial', '-', '--json')
    await destination.says(/listening on unix:/)
    const source = farfault('migrate', '--to', uri, '--postcopy=now', '--memory=32M')
    assert.equal((await source.ended).code, 0, source.out + source.err)
    assert.equal((await destination.ended).code, 0, destination.out + destination.err)
    const report = JSON.parse(destination.out)
    assert.equal(report.ramCheck.ok, true)
    assert.ok(report.guest.printed.characters > 0)
    assert.match(destination.err, /abcdefgh|uvwxyzab/)
  } finally {
    rmSync(directory, { recursive: true })
  }
})

test('a guest that is too large is refused before its RAM is allocated', limit, async () => {
  const destination = farfault('receive', '--listen', 'tcp:127.0.0.1:0', '--max-memory', '8M')
  const [, uri] = await destination.says(/listening on (\S+)/)
  const source = farfault('migrate', '--to', uri!, '--memory=16M', '--after=0')
  assert.equal((await destination.ended).code, 1)
  assert.match(destination.out, /more than --max-memory 8.0 MiB/)
  assert.equal((await source.ended).code, 1)
  assert.match(source.out, /The guest runs on here/)
})

test('what cannot be is a usage error, and says what can', limit, async () => {
  const cases: [string[], RegExp][] = [
    [[], /Usage: farfault COMMAND/],
    [['fly'], /unknown command "fly"; there are demo, /],
    [['demo', '--memry', '1G'], /unknown option --memry/],
    [['demo', '--memory', 'lots'], /--memory wants a size like 4096, 128M or 1G, not "lots"/],
    [['migrate'], /--to is needed \(URI\)/],
    [['migrate', '--to', '--json'], /--to needs a value: --to URI/],
    [['receive', '--listen', 'http:x'], /is not a channel; use tcp:HOST:PORT/],
    [['demo', 'now'], /unexpected argument "now"/],
    [['demo', '--json', '--memory', '100'], /v86 takes RAM in multiples of 128 KiB/],
    [['demo', '--json=yes'], /--json takes no value/],
  ]
  for (const [args, message] of cases) {
    const run = farfault(...args)
    assert.equal((await run.ended).code, 2, args.join(' '))
    assert.match(run.err, message)
    assert.equal(run.out, '')
  }
})

test('help and version', limit, async () => {
  for (const [args, pattern] of [
    [['--help'], /Exit status:/],
    [['help', 'receive'], /--listen URI/],
    [['migrate', '--help'], /SIGUSR1/],
    [['--version'], /^\d+\.\d+\.\d+\n$/],
  ] as const) {
    const run = farfault(...args)
    assert.equal((await run.ended).code, 0)
    assert.match(run.out, pattern)
  }
})
