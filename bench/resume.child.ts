// resume.child IMAGE OPTIONS: `resume` of the library, in a process of its own. OPTIONS: its options, JSON. Says when QEMU ran
// and when the guest first said something, from `migrate-incoming` on (`ResumeTimes`); then the VM is gone.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { compileLess } from '../src/cli/compile-less.js'
import { type ResumeOptions, resume } from '../src/index.js'
import { RUN_MS_MAX } from './programs.js'
import type { ResumeTimes } from './resume.js'
import { BEAT } from './workloads.js'

const [image, json] = process.argv.slice(2)
const options = JSON.parse(json!) as ResumeOptions
compileLess() // as the command does
const { qemu, resumedMs, notMapped, done, demand } = await resume(image!, { ...options, console: 'collect' })
const startMs = performance.now() - resumedMs!
assert.equal(notMapped, undefined)
await qemu.waitForOutput(BEAT, { timeoutMs: RUN_MS_MAX })
const times: ResumeTimes = { RESUME: resumedMs!, output: performance.now() - startMs }
console.log(JSON.stringify(times))
// The turn that does not count makes the record for the others.
while (options.record !== false && demand().workingSet === null && demand().written === null) await sleep(100)
await qemu.kill()
await done
