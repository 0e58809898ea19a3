// The process that serves a VM's RAM is killed, again and again, at random moments after the VM runs; also while it takes
// over from the one killed before. Each time the command that it had named goes on. The guest sees a pause, and no more.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { waitForMigration } from '../../src/qemu/migration.js'
import { connectQmp } from '../../src/qemu/qmp.js'
import { allGone, farfault, type Run } from '../cli/farfault.js'
import { temporaryDirectory } from '../image/images.js'
import { skipReason } from '../qemu/find.js'
import { type ParkedVm, parkVm, readPrinted } from './parked.js'

const MiB = 1024 * 1024
/** `KILLS=20 RAM_MIB=1024` for more by hand. */
const KILLS = Number(process.env.KILLS ?? 3)
const RAM_MIB = Number(process.env.RAM_MIB ?? 64)
/** Until it is killed, at most, ms: of one from its start, of the next from when it serves. */
const LATEST_KILL_MS = 1500
/** Slow enough that RAM is not in before the last kill. */
const BYTES_A_SECOND = Math.round((RAM_MIB * MiB) / (KILLS * 2))

const directory = temporaryDirectory({ after } as never)
const parked = new Map<string, Promise<ParkedVm>>()

/** The command that was said to go on when the process dies. */
async function named(run: Run): Promise<string[]> {
  const [, command] = await run.says(/waits for: farfault (.*)\n/)
  return command!.split(' ')
}

/** Not until its output ends: QEMU has it as well. */
async function kill({ child }: Run): Promise<void> {
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
}

/** A VM is resumed by a process that can be killed. */
async function begin(t: TestContext, version: string, options: readonly string[]) {
  if (!parked.has(version)) parked.set(version, parkVm(directory, version, RAM_MIB))
  const vm = await parked.get(version)!
  const printed = join(directory, `printed-${version}-${options.join('')}`)
  const first = farfault('resume', vm.path, ...options, '--', ...vm.command(version, `file:${printed}`))
  const again = await named(first)
  const qmpPath = again.at(-1)!
  const record = JSON.parse(readFileSync(join(dirname(qmpPath), 'resumed.json'), 'utf8')) as { pid: number }
  const { pid } = record
  t.after(() => {
    if (existsSync(`/proc/${pid}`)) process.kill(pid, 'SIGKILL')
  })
  return { vm, printed, first, again, qmpPath, pid }
}

for (const version of ['7.2', '10.0']) {
  const limits = { skip: skipReason({ qemus: [version] }), timeout: 150_000 + KILLS * 10_000 }
  for (const preempt of [false, true]) {
    const how = preempt ? ', with a channel for requested pages' : ''
    test(`QEMU ${version}${how}: its server killed ${KILLS} times`, limits, async (t) => {
      const rate = `--max-bandwidth=${BYTES_A_SECOND}`
      const begun = await begin(t, version, [rate, preempt ? '--preempt' : '--no-preempt'])
      const { vm, printed, first, again, qmpPath, pid } = begun
      await sleep(Math.random() * LATEST_KILL_MS)
      await kill(first)
      let served = 0
      for (let i = 1; i < KILLS; i++) {
        const run = farfault(...again)
        if (i % 2 === 1) await run.says(/served again/)
        await sleep(Math.random() * LATEST_KILL_MS)
        await kill(run)
        if (/served again/.test(run.err)) served++
        assert.doesNotMatch(run.err, /nothing is left/, 'all was over before the last kill')
      }
      const last = farfault(...again.filter((argument) => !argument.startsWith('--max-bandwidth')), '--json')
      assert.deepEqual(await last.ended, { code: 0, signal: null }, last.err)
      assert.equal(JSON.parse(last.out).ok, true)
      t.diagnostic(`${served} of ${KILLS - 1} were killed after they had begun to serve; ${last.err}`)

      const qmp = await connectQmp(qmpPath)
      await waitForMigration(qmp, ['completed'])
      await sleep(300) // it runs on
      await qmp.execute('stop')
      const file = join(directory, 'pmem')
      await qmp.execute('pmemsave', { val: 0, size: RAM_MIB * MiB, filename: file }, { timeoutMs: 60_000 })
      vm.assertRam(readFileSync(file))
      vm.assertLetters(readPrinted(printed))
      await qmp.execute('quit').catch(() => {})
      await allGone([pid], 5000)
    })
  }
}

for (const version of ['7.2', '10.0']) {
  const limits = { skip: skipReason({ qemus: [version] }), timeout: 120_000 }
  test(
    `QEMU ${version}, on demand alone: its server is killed, and its own end is the end`,
    limits,
    async (t) => {
      const { vm, printed, first, again, qmpPath, pid } = await begin(t, version, [
        '--no-push',
        '--no-record',
      ])
      await kill(first)
      const second = farfault(...again)
      await second.says(/served again/)
      const before = readPrinted(printed).length
      for (
        const endMs = performance.now() + 30_000;
        readPrinted(printed).length < before + 3;
        await sleep(50)
      )
        assert.ok(performance.now() < endMs, 'the guest does not go on')
      process.kill(pid, 'SIGTERM')
      assert.deepEqual(await second.ended, { code: 0, signal: null }, second.err)
      assert.match(second.err, /QEMU has ended/)
      vm.assertLetters(readPrinted(printed))
      assert.equal(existsSync(dirname(qmpPath)), false, 'what was of that QEMU is left')
    },
  )
}
