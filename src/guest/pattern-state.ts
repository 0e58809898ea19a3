// The pattern guest's options and its device state: where it is in its walk, and how often each page was written.
// Guest thread.

import { GuestError, UsageError } from '../errors.js'
import type { BlockSpec } from './ram-blocks.js'

/** In which order pages are visited. `hot-cold`: nine steps of ten fall on the first tenth of the pages. */
export const PATTERNS = ['sequential', 'random', 'stride', 'hot-cold'] as const
export type Pattern = (typeof PATTERNS)[number]

export interface PatternOptions {
  readonly blocks: readonly BlockSpec[]
  readonly pattern: Pattern
  /** Equal seeds walk and write alike. */
  readonly seed: number
  /** Share of the steps that write after reading, 0 to 1. */
  readonly writeRatio: number
  /** Steps a second; flat out unless given. */
  readonly pagesPerSecond?: number
  /** Only so many pages, spread evenly over all RAM, are ever used; all unless given. */
  readonly touchedPages?: number
  /** Pages written before the guest first runs, of those used; none unless given. */
  readonly initialPages?: number
}

/** All that changes, but for RAM. */
export interface PatternState {
  readonly options: PatternOptions
  steps: number
  /** State of the random generator. */
  random: number
  /** Which of the used pages the next step visits. */
  next: number
  /** Of each used page, how often it has been written. */
  versions: Uint32Array
}

/** Throws UsageError. */
export function checkOptions(options: PatternOptions, pageCount: number): PatternOptions {
  const { pattern, seed, writeRatio, pagesPerSecond, touchedPages = pageCount, initialPages = 0 } = options
  const require = (holds: boolean, what: string) => {
    if (!holds) throw new UsageError(`pattern guest: ${what}`)
  }
  require(PATTERNS.includes(pattern), `pattern is one of ${PATTERNS.join(', ')}`)
  require(Number.isSafeInteger(seed), 'seed is a whole number')
  require(writeRatio >= 0 && writeRatio <= 1, 'writeRatio is 0 to 1')
  require(pagesPerSecond === undefined || pagesPerSecond > 0, 'pagesPerSecond is above 0')
  require(inRange(touchedPages, 1, pageCount), `touchedPages is 1 to ${pageCount}, the pages of RAM`)
  require(inRange(initialPages, 0, touchedPages), `initialPages is 0 to ${touchedPages}, the pages used`)
  return options
}

function inRange(value: number, min: number, max: number): boolean {
  return Number.isSafeInteger(value) && value >= min && value <= max
}

/** What travels as JSON, before the versions. */
interface Header {
  readonly options: PatternOptions
  readonly steps: number
  readonly random: number
  readonly next: number
  /** Bytes of each version that follows: as few as hold the largest. */
  readonly versionBytes: 1 | 2 | 4
}

const ARRAYS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array } as const

/** u32 length of the header, the header, the versions; little-endian like everything the guest has. */
export function encodeState(state: PatternState): Uint8Array {
  const { options, steps, random, next, versions } = state
  const largest = versions.reduce((max, version) => Math.max(max, version), 0)
  const versionBytes = largest < 2 ** 8 ? 1 : largest < 2 ** 16 ? 2 : 4
  const header: Header = { options, steps, random, next, versionBytes }
  const text = new TextEncoder().encode(JSON.stringify(header))
  const packed = ARRAYS[versionBytes].from(versions)
  const bytes = new Uint8Array(4 + text.length + packed.byteLength)
  new DataView(bytes.buffer).setUint32(0, text.length, true)
  bytes.set(text, 4)
  bytes.set(new Uint8Array(packed.buffer), 4 + text.length)
  return bytes
}

/** The inverse. Throws GuestError on bytes that are not such a state, or not one for so much RAM. */
export function decodeState(bytes: Uint8Array, pageCount: number): PatternState {
  try {
    const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(4, 4 + length))
    const { options, steps, random, next, versionBytes } = JSON.parse(text) as Header
    checkOptions(options, pageCount)
    const used = options.touchedPages ?? pageCount
    const packed = bytes.slice(4 + length)
    const numbers = inRange(steps, 0, Number.MAX_SAFE_INTEGER) && inRange(next, 0, used - 1)
    if (!numbers || !Number.isSafeInteger(random) || packed.length !== used * versionBytes) {
      throw new GuestError(`${packed.length} bytes of versions for ${used} pages, next page ${next}`)
    }
    const versions = Uint32Array.from(new ARRAYS[versionBytes](packed.buffer))
    return { options, steps, random, next, versions }
  } catch (cause) {
    throw new GuestError('this is no device state of a pattern guest with this RAM', { cause })
  }
}
