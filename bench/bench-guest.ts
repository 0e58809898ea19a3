// The guest of the benchmarks: one RAM block, filled or empty, and when run it may read every page in a random order, in C.
// Runs on the guest thread. A module of its own shows what a user of the library writes, too.

import type { Guest, GuestContext, RamBlockShape } from '../src/guest/guest.js'
import { koffi } from '../src/os/libc.js'
import { mapAnonymous, viewOf } from '../src/os/mapping.js'

export const MACHINE = 'farfault-bench'
export const BLOCK = 'ram'
const PAGE_BYTES = 4096
const PAGE_WORDS = PAGE_BYTES / 4

export interface BenchGuestOptions {
  readonly pages: number
  /** No page is zero: word i of RAM is i + 1, as in the C reference. */
  readonly filled?: boolean
  /** Read every page once it runs. The nanoseconds each took (u32) are then its output. */
  readonly touch?: { readonly code: string; readonly seed: number }
}

export function incoming(_machine: string, blocks: readonly RamBlockShape[]): BenchGuestOptions {
  return { pages: blocks[0]!.length / PAGE_BYTES }
}

export async function create(options: unknown, context: GuestContext): Promise<Guest> {
  const { pages, filled = false, touch } = options as BenchGuestOptions
  const length = pages * PAGE_BYTES
  const { address } = mapAnonymous(length, { noReserve: true })
  const bytes = viewOf(address, length)
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, length / 4)
  if (filled) for (let i = 0; i < words.length; i++) words[i] = i + 1
  const toucher = touch === undefined ? undefined : loadToucher(touch.code)
  let read = 0

  function touchAll(seed: number): void {
    const samples = new Uint32Array(pages)
    toucher!(address, pages, seed, samples)
    read = pages
    context.output(new Uint8Array(samples.buffer))
  }

  return {
    machine: MACHINE,
    unmapBlocks: true,
    blocks: [{ name: BLOCK, length, pageSize: PAGE_BYTES, address, backing: 'anonymous' }],
    run(firstInstruction) {
      firstInstruction()
      if (touch !== undefined) setImmediate(touchAll, touch.seed)
    },
    async stop() {},
    saveDevices: () => new Uint8Array(0),
    loadDevices() {},
    check() {
      for (let at = 0; at < words.length; at += PAGE_WORDS) {
        const last = at + PAGE_WORDS - 1
        if (words[at] !== at + 1 || words[last] !== last + 1)
          return { ok: false, detail: `page ${at / PAGE_WORDS} is wrong` }
      }
      return { ok: true, detail: `${pages} pages are right` }
    },
    progress: () => read,
  }
}

function loadToucher(library: string): (ram: number, pages: number, seed: number, ns: Uint32Array) => void {
  return koffi().load(library).func('touch_pages', 'void', ['uintptr_t', 'uint32_t', 'uint32_t', 'void *'])
}
