import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import test from 'node:test'
import { formatProbeJson, formatProbeText } from '../cli/probe-format.js'
import { HostUnsupportedError } from '../errors.js'
import { pageSize } from './mapping.js'
import { assertHostCanReceive, type ProbeReport, probeHost } from './probe.js'

const byId = (report: ProbeReport, id: string) => report.checks.find((check) => check.id === id)!

test('the required checks come in the order of a postcopy announcement', () => {
  const required = probeHost().checks.filter((check) => check.required)
  const ids = ['target-page', 'userfaultfd', 'ioctls', 'huge-faults', 'private-ram', 'munlock', 'test-area']
  assert.deepEqual(
    required.map((check) => check.id),
    ids,
  )
})

test('this host can receive', () => {
  const report = probeHost()
  assert(report.canReceive, formatProbeText(report))
  assertHostCanReceive()
})

test('a bigger target page is refused', () => {
  const options = { targetPageSize: 2 * pageSize() }
  assert.equal(byId(probeHost(options), 'target-page').ok, false)
  assert.throws(() => assertHostCanReceive(options), HostUnsupportedError)
})

test('shared RAM is refused by name, with what to do', () => {
  const refused = () => assertHostCanReceive({ sharedBlocks: ['pc.ram'] })
  assert.throws(
    refused,
    (error) => error instanceof HostUnsupportedError && /pc\.ram.*privately/.test(error.message),
  )
})

test('a huge page size with an empty pool is told', () => {
  const pool = byId(probeHost({ pageSizeSummary: pageSize() + 2 ** 30 }), 'huge-pool')
  // Hosts without a 1 GiB pool at all have nothing to say about it.
  if (pool.ok === false) assert.match(pool.remedy!, /hugepages-1048576kB/)
})

test('text and JSON tell the same', () => {
  const report = probeHost({ sharedBlocks: ['a'] })
  const text = formatProbeText(report)
  for (const check of report.checks) assert(text.includes(check.detail), check.id)
  assert.match(text, /FAIL {2}private guest RAM/)
  assert.match(text, /cannot receive a guest by postcopy\.$/)
  assert.deepEqual(JSON.parse(formatProbeJson(report)), report)
})

test('without rights: faults of user code can be served, and the missing rights are named', {
  timeout: 60_000,
}, (t) => {
  if (process.getuid?.() !== 0) return t.skip('needs root to become another user')
  const program = `
    process.setgroups([]); process.setgid(65534); process.setuid(65534)
    const { probeHost } = await import(${JSON.stringify(new URL('probe.js', import.meta.url).href)})
    console.log(JSON.stringify(probeHost()))`
  // Load everything first, so that the folder need not be readable to nobody.
  const early = `await import(${JSON.stringify(new URL('probe.js', import.meta.url).href)}).then((m) => m.probeHost());`
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', early + program], {
    encoding: 'utf8',
  })
  assert.equal(child.stderr, '')
  const report = JSON.parse(child.stdout) as ProbeReport
  const check = byId(report, 'userfaultfd')
  if (check.ok === true) return t.skip(`unprivileged userfaultfd is allowed here: ${check.detail}`)
  assert.match(check.detail, /CAP_SYS_PTRACE not held/)
  assert.match(check.detail, /\/dev\/userfaultfd/)
  assert.match(check.remedy!, /sysctl vm\.unprivileged_userfaultfd=1/)
  // User-mode-only userfaultfd is allowed since Linux 5.11 unless a sandbox forbids the call.
  assert.equal(check.ok, 'warning')
  assert(report.canReceive)
})
