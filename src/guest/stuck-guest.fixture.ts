// A guest module for tests of the thread around it: `stuckIn` names the method that never returns, `throwIn` the one
// that throws.

import { setTimeout as sleep } from 'node:timers/promises'
import { GuestError } from '../errors.js'
import type { Guest, GuestContext } from './guest.js'

export interface StuckOptions {
  readonly stuckIn?: keyof Guest
  readonly throwIn?: keyof Guest | 'create'
}

export function incoming(): StuckOptions {
  return {}
}

export async function create(options: unknown, context: GuestContext): Promise<Guest> {
  const { stuckIn, throwIn } = options as StuckOptions
  if (throwIn === 'create') throw new GuestError('thrown in create')
  const at = (method: keyof Guest) => {
    if (throwIn === method) throw new GuestError(`thrown in ${method}`)
    if (stuckIn === method) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
  }
  let timer: NodeJS.Timeout
  return {
    machine: 'stuck',
    blocks: [],
    run(firstInstruction) {
      at('run')
      firstInstruction()
      timer = setInterval(() => context.output(Buffer.from('.')), 1)
    },
    async stop() {
      at('stop')
      clearInterval(timer)
      await sleep(1)
    },
    saveDevices() {
      at('saveDevices')
      return Uint8Array.of(1, 2, 3)
    },
    loadDevices: () => at('loadDevices'),
    check: () => ({ ok: true, detail: '' }),
    progress: () => 7,
  }
}
