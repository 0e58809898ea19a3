import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { isAlive, readRecord, removeEnded, writeRecord } from './record.js'

test('directories of QEMUs that have ended are removed, and no others', (t) => {
  const parent = mkdtempSync(join(tmpdir(), 'farfault-test-record-'))
  t.after(() => rmSync(parent, { recursive: true }))
  const { pid: gone } = spawnSync('true')
  assert.ok(!isAlive(gone))
  const make = (name: string, pid?: number): string => {
    const directory = join(parent, name)
    mkdirSync(directory)
    if (pid !== undefined) writeRecord(directory, { image: 'vm.img', identity: 'some', preempt: false, pid })
    return directory
  }
  make('farfault-qemu-ended', gone)
  const runs = make('farfault-qemu-runs', process.pid)
  make('farfault-qemu-starts')
  writeFileSync(join(make('farfault-qemu-elsewhere', gone), 'qmp'), '')
  const other = make('other', gone)
  symlinkSync(other, join(parent, 'farfault-qemu-link'))

  removeEnded(parent)
  const left = [...['elsewhere', 'link', 'runs', 'starts'].map((name) => `farfault-qemu-${name}`), 'other']
  assert.deepEqual(readdirSync(parent).sort(), left)
  assert.equal(readRecord(other).pid, gone) // what a link leads to is left
  assert.equal(readRecord(runs).pid, process.pid)
})
