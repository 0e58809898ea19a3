// The pattern guest: visits pages in a set order, reads, and writes a share of them; it knows what every page must
// hold at any time. Runs on the guest thread.
//
// It stands in for a VM where the paging engine is to be proved or measured: exact access patterns and rates, any
// amount of RAM, each read verified on the spot, and every byte verified at the end.

import { GuestError } from '../errors.js'
import { isZeroRange } from '../os/memory.js'
import { decodeDeviceState, encodeDeviceState } from './device-record.js'
import type { Guest, GuestCheck, GuestContext, RamBlockShape } from './guest.js'
import { samplePage, writePage, wrongWord } from './pattern-page.js'
import {
  checkOptions,
  decodeState,
  encodeState,
  type Pattern,
  type PatternOptions,
  type PatternState,
} from './pattern-state.js'
import { possiblyNonZero } from './populated.js'
import { greatestCommonDivisor, mapBlocks, PAGE_BYTES, type RamBlocks, specsOf } from './ram-blocks.js'
import { createSlices, type Slices } from './slices.js'

export type { PatternOptions } from './pattern-state.js'

const MACHINE = 'farfault-pattern'
const DEVICE = { idstr: 'pattern', version: 1 } as const
const STEPS_PER_OUTPUT = 100_000
const STRIDE_PAGES = 61

export function incoming(machine: string, blocks: readonly RamBlockShape[]): PatternOptions {
  if (machine !== MACHINE) throw new GuestError(`the incoming guest is a ${machine}, not a ${MACHINE}`)
  // The rest comes with the device state.
  return { blocks: specsOf(blocks), pattern: 'sequential', seed: 0, writeRatio: 0 }
}

/** Throws UsageError on options that cannot be. */
export async function create(options: unknown, context: GuestContext): Promise<Guest> {
  const given = options as PatternOptions
  const ram = mapBlocks(given.blocks)
  try {
    checkOptions(given, ram.pageCount)
  } catch (error) {
    ram.unmap()
    throw error
  }
  let state = freshState(given, ram)
  let slices: Slices | undefined
  return {
    machine: MACHINE,
    blocks: ram.blocks,
    unmapBlocks: true,
    run(firstInstruction) {
      const page = pageOfSlot(state, ram, state.next)
      Atomics.load(ram.viewOfPage(page), ram.wordOf(page))
      firstInstruction()
      slices = createSlices(() => step(state, ram, context), context.failed, state.options.pagesPerSecond)
      slices.start()
    },
    async stop() {
      slices?.stop()
    },
    saveDevices: () => encodeDeviceState(DEVICE, encodeState(state)),
    loadDevices(sections) {
      state = decodeState(decodeDeviceState(sections, DEVICE), ram.pageCount)
    },
    check: () => checkAll(state, ram),
    progress: () => state.steps,
  }
}

function freshState(options: PatternOptions, ram: RamBlocks): PatternState {
  const versions = new Uint32Array(options.touchedPages ?? ram.pageCount)
  const state: PatternState = { options, steps: 0, random: options.seed, next: 0, versions }
  for (let slot = 0; slot < (options.initialPages ?? 0); slot++) writeNext(state, ram, slot)
  state.next = pickSlot(state)
  return state
}

function pageOfSlot(state: PatternState, ram: RamBlocks, slot: number): number {
  return Math.floor((slot * ram.pageCount) / state.versions.length)
}

function writeNext(state: PatternState, ram: RamBlocks, slot: number): void {
  const page = pageOfSlot(state, ram, slot)
  const version = state.versions[slot]! + 1
  writePage(ram.viewOfPage(page), ram.wordOf(page), state.options.seed, page, version)
  state.versions[slot] = version
}

/** Visits one page. Throws GuestError if it does not hold what was last written. Allocates nothing. */
function step(state: PatternState, ram: RamBlocks, context: GuestContext): boolean {
  const { seed, writeRatio } = state.options
  const slot = state.next
  const page = pageOfSlot(state, ram, slot)
  const version = state.versions[slot]!
  if (!samplePage(ram.viewOfPage(page), ram.wordOf(page), seed, page, version, state.steps)) {
    throw new GuestError(`guest RAM is wrong at ${ram.describePage(page)}: it is not version ${version}`)
  }
  if (writeRatio > 0 && randomBelowOne(state) < writeRatio) writeNext(state, ram, slot)
  state.steps++
  state.next = pickSlot(state)
  if (state.steps % STEPS_PER_OUTPUT === 0) context.output(Buffer.from(`step ${state.steps}\n`))
  return true
}

/** mulberry32: one 32-bit word of state, and good enough to scatter. */
function randomBelowOne(state: PatternState): number {
  state.random = (state.random + 0x6d2b79f5) | 0
  let mixed = Math.imul(state.random ^ (state.random >>> 15), 1 | state.random)
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
}

/** The used page to visit next. */
const PICK: Readonly<Record<Pattern, (state: PatternState, slots: number) => number>> = {
  sequential: ({ steps }, slots) => steps % slots,
  stride: ({ steps }, slots) => (steps * strideFor(slots)) % slots,
  random: (state, slots) => Math.floor(randomBelowOne(state) * slots),
  'hot-cold': (state, slots) => {
    const among = randomBelowOne(state) < 0.9 ? Math.max(1, Math.floor(slots / 10)) : slots
    return Math.floor(randomBelowOne(state) * among)
  },
}

function pickSlot(state: PatternState): number {
  return PICK[state.options.pattern](state, state.versions.length)
}

/** The same width for all steps, and one that reaches every page. */
function strideFor(slots: number): number {
  let stride = STRIDE_PAGES
  while (greatestCommonDivisor(stride, slots) !== 1) stride++
  return stride
}

function checkAll(state: PatternState, ram: RamBlocks): GuestCheck {
  const { versions, options } = state
  let slot = 0
  let written = 0
  const possible = possiblyNonZero(ram)
  for (let page = 0; page < ram.pageCount; page++) {
    const used = slot < versions.length && pageOfSlot(state, ram, slot) === page
    const version = used ? versions[slot]! : 0
    if (used) slot++
    if (version > 0) written++
    // Most pages of a big sparse guest.
    else if (!possible.get(page) || isZeroRange(ram.addressOf(page), PAGE_BYTES)) continue
    const word = wrongWord(ram.viewOfPage(page), ram.wordOf(page), options.seed, page, version)
    if (word !== -1) {
      const where = `${ram.describePage(page)} + 0x${(word * 4).toString(16)}`
      return { ok: false, detail: `guest RAM is wrong at ${where}: it is not version ${version} of the page` }
    }
  }
  return {
    ok: true,
    detail: `${ram.pageCount} pages hold what ${state.steps} steps left, ${written} of them written`,
  }
}
