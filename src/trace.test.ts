import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'

const PROGRAM = `
  import { trace, tracing } from '${new URL('./trace.js', import.meta.url)}'
  trace('postcopy_place_page', 'pc.ram', 8192, 2)
  trace('postcopy_init_range', 'pc.ram', 0x7f0000000000, 0, 4096)
  trace('migration_pass', 1, 17)
  console.log(tracing())
`

function run(wanted: string | undefined): { out: string; lines: string[] } {
  const env = { ...process.env }
  delete env.FARFAULT_TRACE
  if (wanted !== undefined) env.FARFAULT_TRACE = wanted
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', PROGRAM], {
    env,
    encoding: 'utf8',
    timeout: 10_000,
  })
  return { out: stdout.trim(), lines: stderr.split('\n').filter((line) => line !== '') }
}

test('nothing is traced unless it is asked for', () => {
  assert.deepEqual(run(undefined), { out: 'false', lines: [] })
  assert.deepEqual(run('no_such_event'), { out: 'false', lines: [] })
})

test('an event is a line of time, thread, name and named values', () => {
  const { out, lines } = run('migration_pass')
  assert.equal(out, 'true')
  assert.equal(lines.length, 1)
  assert.match(lines[0]!, /^\d+ t0 migration_pass pass=1 dirtyPages=17$/)
})

test('a star at the end matches the rest; addresses are hexadecimal', () => {
  const { lines } = run('postcopy_*')
  assert.deepEqual(
    lines.map((line) => line.replace(/^\d+ t0 /, '')),
    [
      'postcopy_place_page block=pc.ram offset=8192 pages=2',
      'postcopy_init_range block=pc.ram address=0x7f0000000000 offset=0 length=4096',
    ],
  )
  assert.equal(run('*').lines.length, 3)
})
