// The documentation says what is true: its generated parts come from the tables, and every trace event has its place.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { TRACE_EVENTS } from '../src/trace.js'

const ROOT = join(import.meta.dirname, '..', '..')

test('the generated parts of ARCHITECTURE.md are what the tables say', () => {
  const { status, stderr } = spawnSync(process.execPath, [join(ROOT, 'scripts', 'docs.mjs'), '--check'])
  assert.equal(status, 0, String(stderr))
})

test('every trace event is fired somewhere and documented', () => {
  const text = readFileSync(join(ROOT, 'ARCHITECTURE.md'), 'utf8')
  const code = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts') && path !== 'trace.ts')
    .map((path) => readFileSync(join(ROOT, 'src', path), 'utf8'))
    .join('')
  const [table] = text.split('### Trace events')[1]!.split('## States')
  for (const event of Object.keys(TRACE_EVENTS)) {
    assert.ok(code.includes(`'${event}'`), `${event} is never fired`)
    const short = /_(entry|exit|quit|request|join|closeuf)$/.exec(event)?.[0]
    assert.ok(
      table!.includes(event) || (short !== undefined && table!.includes(short)),
      `${event} is not documented`,
    )
  }
})

test('the example of the README has under 30 lines and runs', { timeout: 60_000 }, () => {
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8')
  const example = /```ts\n([\s\S]*?)```/.exec(readme)![1]!
  assert.ok(example.split('\n').length < 30)
  // Within the package its own name resolves to it. The example has no types in it, so it runs as it stands.
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module'], {
    input: example,
    cwd: ROOT,
  })
  assert.equal(status, 0, String(stderr))
  assert.match(String(stdout), /source: completed\n/)
  assert.match(String(stdout), /down for [\d.]+ ms, \d+ faults\n\d+ pages hold/)
})
