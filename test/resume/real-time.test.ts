// The thread of a real QEMU that takes requested pages runs before all others, where we may say so, and is left alone otherwise.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ResumeOptions, resume } from '../../src/index.js'
import { threadNamed } from '../../src/os/scheduling.js'
import { temporaryDirectory } from '../image/images.js'
import { skipReason } from '../qemu/find.js'
import { type ParkedVm, parkVm } from './parked.js'

const directory = temporaryDirectory({ after } as never)
const limits = { skip: skipReason({ qemus: ['7.2', '10.0'] }), timeout: 120_000 }
/** Each QEMU's name for it. */
const THREAD = { '7.2': 'fault-fast', '10.0': 'mig/dst/preempt' } as const
const SCHED = { other: 0, fifo: 1 } as const

let parked: Promise<ParkedVm> | undefined

/** Whether we may is the kernel's to say, and another program's to find out. */
const mayChoose = (): boolean => spawnSync('chrt', ['--fifo', '1', 'true']).status === 0

/** proc_pid_stat(5): its field 41. */
function policyOf(pid: number, thread: number): number {
  const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'latin1')
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[41 - 3])
}

/** On demand only: the thread is there as long as the VM lives. */
async function policyIn(version: keyof typeof THREAD, options: Partial<ResumeOptions>): Promise<number> {
  parked ??= parkVm(directory, '7.2', 16)
  const vm = await parked
  const command = vm.command(version, 'stdio')
  const { qemu, done } = await resume(vm.path, { command, console: 'collect', push: false, ...options })
  try {
    await qemu.waitForOutput(/\w/, { timeoutMs: 30_000 })
    const thread = threadNamed(qemu.pid, [THREAD[version]])
    assert.ok(thread !== undefined, 'it has that name')
    for (let i = 0; i < 50 && policyOf(qemu.pid, thread) === SCHED.other; i++) await sleep(2)
    return policyOf(qemu.pid, thread)
  } finally {
    await qemu.kill()
    await done
  }
}

for (const version of ['7.2', '10.0'] as const) {
  test(`QEMU ${version}: requested pages are taken before all else`, limits, async () => {
    assert.equal(await policyIn(version, {}), mayChoose() ? SCHED.fifo : SCHED.other)
  })

  test(`QEMU ${version}: not where that is not wanted`, limits, async () => {
    assert.equal(await policyIn(version, { realTime: false }), SCHED.other)
  })
}
