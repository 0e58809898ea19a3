// A guest module for tests of the engine: a page of RAM that is never touched, and notes of how it is treated.
// `refuse` makes an incoming one that cannot load its devices, `loadMs` one that takes its time for that.

import { setTimeout as sleep } from 'node:timers/promises'
import { GuestError } from '../../src/errors.js'
import { encodeDeviceState } from '../../src/guest/device-record.js'
import type { Guest, GuestContext, RamBlockShape } from '../../src/guest/guest.js'
import { mapBlocks } from '../../src/guest/ram-blocks.js'

export const MACHINE = 'farfault-balloon'
const DEVICE = { idstr: 'balloon', version: 1 }

export interface BalloonOptions {
  readonly blocks: readonly RamBlockShape[]
  readonly refuse?: boolean
  readonly loadMs?: number
}

export function incoming(_machine: string, blocks: readonly RamBlockShape[]): BalloonOptions {
  return { blocks }
}

export async function create(options: unknown, context: GuestContext): Promise<Guest> {
  const { blocks, refuse, loadMs = 0 } = options as BalloonOptions
  const ram = mapBlocks(blocks.map(({ name, length }) => ({ name, length })))
  const note = (text: string): void => context.output(Buffer.from(`${text}\n`))
  let progress = 0
  let timer: NodeJS.Timeout | undefined
  return {
    machine: MACHINE,
    blocks: ram.blocks,
    run(firstInstruction) {
      note('run')
      firstInstruction()
      timer = setInterval(() => progress++, 1)
    },
    async stop() {
      clearInterval(timer)
    },
    saveDevices: () => encodeDeviceState(DEVICE, Uint8Array.of(1, 2, 3)),
    async loadDevices() {
      if (refuse) throw new GuestError('this guest takes no devices')
      if (loadMs > 0) await sleep(loadMs)
      note('load')
    },
    holdBalloon: (hold) => note(`hold ${hold}`),
    check: () => ({ ok: true, detail: 'nothing was written' }),
    progress: () => progress,
    dispose: ram.unmap,
  }
}
