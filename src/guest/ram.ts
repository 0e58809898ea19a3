// The RAM guest: RAM and device state, and no code of its own. Runs on the guest thread.
//
// It is the destination for a VM whose devices only QEMU understands: they are kept as the bytes they came as. When
// run it may read every page once, so that a transfer is watched under faults. It never writes.

import { UsageError } from '../errors.js'
import type { Guest, GuestContext, RamBlockShape } from './guest.js'
import { type BlockSpec, greatestCommonDivisor, mapBlocks, type RamBlocks, specsOf } from './ram-blocks.js'
import { createSlices } from './slices.js'

export interface RamOptions {
  /** Machine type on the wire: QEMU's name of the machine, like `pc-i440fx-7.2`. */
  readonly machine: string
  readonly blocks: readonly BlockSpec[]
  /** In which order pages are read while it runs, each once; `none` unless given. */
  readonly touch?: { readonly order: 'random' | 'sequential' | 'none'; readonly seed?: number }
}

/** Any machine and any blocks will do. */
export function incoming(machine: string, blocks: readonly RamBlockShape[]): RamOptions {
  return { machine, blocks: specsOf(blocks), touch: { order: 'random', seed: 1 } }
}

export async function create(options: unknown, context: GuestContext): Promise<Guest> {
  const { machine, blocks, touch = { order: 'none' } } = options as RamOptions
  if (typeof machine !== 'string' || machine === '') throw new UsageError('a RAM guest needs a machine name')
  const ram = mapBlocks(blocks)
  let devices: Uint8Array = new Uint8Array(0)
  const reader = pageReader(ram, touch)
  const slices = createSlices(reader.step, context.failed)
  return {
    machine,
    blocks: ram.blocks,
    unmapBlocks: true,
    run(firstInstruction) {
      reader.step()
      firstInstruction()
      slices.start()
    },
    async stop() {
      slices.stop()
    },
    saveDevices: () => devices,
    loadDevices(sections) {
      devices = sections.slice()
    },
    check: () => ({ ok: true, detail: `${reader.done()} of ${ram.pageCount} pages read; nothing to check` }),
    progress: reader.done,
  }
}

function pageReader(
  ram: RamBlocks,
  touch: NonNullable<RamOptions['touch']>,
): { step(): boolean; done(): number } {
  const pages = touch.order === 'none' ? 0 : ram.pageCount
  const stride = touch.order === 'random' ? scatteringStride(pages, touch.seed ?? 1) : 1
  let page = 0
  let done = 0
  return {
    step() {
      if (done >= pages) return false
      Atomics.load(ram.viewOfPage(page), ram.wordOf(page))
      page = (page + stride) % pages
      done++
      return true
    },
    done: () => done,
  }
}

/**
 * A step width that reaches each page once and leaves no two neighbours close in time: near the golden section of the
 * range, moved by the seed, without a common divisor. An order without a table, whatever the size.
 */
function scatteringStride(pages: number, seed: number): number {
  let stride = Math.max(1, Math.floor(pages * 0.618) + (seed % 1000))
  while (greatestCommonDivisor(stride, pages) !== 1) stride++
  return stride
}
