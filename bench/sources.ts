// Two sources that move the same VM to a QEMU destination: farfault, from an image, and the QEMU that holds it.

import type { ServeOptions } from '../src/index.js'
import { queryMigration, setMigrationCapabilities, waitForMigration } from '../src/qemu/migration.js'
import { cpuMs } from './process-facts.js'
import { nodeChild, RUN_MS_MAX, start } from './programs.js'
import { type StoredVm, wakeUp } from './stored-vm.js'
import type { Beat } from './workloads.js'

export interface Moved {
  readonly bytes: number
  /** Processor time of the source's process, from the order to move to the end, ms. */
  readonly cpuMs: number
}

/** A source that is ready: it moves the VM as soon as it is told where to. */
export interface ReadySource {
  /** Capabilities that the destination needs for it. */
  readonly capabilities: readonly string[]
  /** Where the guest was when it stopped. */
  readonly from: Beat
  move(uri: string): Promise<void>
  /** No bandwidth limit from now on. */
  unlimit(): Promise<void>
  /** The destination has all of it. */
  done(): Promise<Moved>
  /** Whatever has happened. */
  stop(): Promise<void>
}

const PREEMPT = 'postcopy-preempt'

/** @param limit bytes a second for what is not asked for; 0: none. */
export type SourceKind = (vm: StoredVm, limit: number) => Promise<ReadySource>

export const farfault =
  (options: ServeOptions = {}, image: 'image' | 'recorded' = 'image'): SourceKind =>
  async (vm, limit) => {
    const all: ServeOptions = { preempt: true, ...options, maxBandwidth: limit }
    const child = start(nodeChild('serve.child', vm[image], JSON.stringify(all)))
    await child.line() // ready
    return {
      capabilities: all.preempt ? [PREEMPT] : [],
      from: vm.parkedAt,
      async move(uri) {
        child.say(`connect ${uri}`)
      },
      async unlimit() {
        child.say('unlimited')
      },
      async done() {
        return JSON.parse(await child.line()) as Moved
      },
      async stop() {
        child.stop()
      },
    }
  }

/** Postcopy from the first moment on. */
const qemu = async (vm: StoredVm, limit: number, preempt: boolean): Promise<ReadySource> => {
  const { qmp, pid } = vm.qemu
  await setMigrationCapabilities(qmp, { 'postcopy-ram': true, 'return-path': true, [PREEMPT]: preempt })
  await qmp.execute('migrate-set-parameters', { 'max-postcopy-bandwidth': limit })
  let usedMs = 0
  let moving = false
  return {
    capabilities: preempt ? [PREEMPT] : [],
    from: vm.beat(),
    async move(uri) {
      usedMs = cpuMs(pid)
      moving = true
      await qmp.execute('migrate', { uri })
      await qmp.execute('migrate-start-postcopy')
    },
    async unlimit() {
      await qmp.execute('migrate-set-parameters', { 'max-postcopy-bandwidth': 0 })
    },
    async done() {
      const { ram } = await waitForMigration(qmp, ['completed'], { timeoutMs: RUN_MS_MAX })
      return { bytes: ram?.transferred ?? Number.NaN, cpuMs: cpuMs(pid) - usedMs }
    },
    async stop() {
      if (moving && (await queryMigration(qmp)).status === 'completed') await wakeUp(vm.qemu)
    },
  }
}

export const qemuSource: SourceKind = (vm, limit) => qemu(vm, limit, false)
export const qemuPreemptSource: SourceKind = (vm, limit) => qemu(vm, limit, true)

/** No source: the destination reads by itself. */
export const nowhere: SourceKind = async (vm) => ({
  capabilities: [],
  from: vm.parkedAt,
  async move() {},
  async unlimit() {},
  done: async () => ({ bytes: Number.NaN, cpuMs: Number.NaN }),
  async stop() {},
})
