// One bit a target page. A bitmap has one writer; others may read it while it changes (shared memory).
//
// Plain loads and stores, no Atomics: a reader that is a moment late asks for a page once too often or looks again,
// and every write that matters to another thread stands beside a system call, which orders it.

export interface Bitmap {
  /** Bits. */
  readonly length: number
  /** 32 bits a word, bit i of the bitmap is bit i%32 of word i/32: on a little-endian host also byte i/8, bit i%8. */
  readonly words: Uint32Array
  get(bit: number): boolean
  set(bit: number): void
  clear(bit: number): void
  setRange(start: number, end: number): void
  clearRange(start: number, end: number): void
  /** First set bit in [from, end), or -1. `end` is the length of the bitmap unless given. */
  nextSet(from: number, end?: number): number
  /** Last set bit in [0, before), or -1. */
  previousSet(before: number): number
  /** First clear bit in [from, end), or `end`. */
  nextClear(from: number, end?: number): number
  /** Set bits. */
  count(): number
  /** True when any bit of [start, end) is set. */
  any(start: number, end: number): boolean
}

export const bitmapBytes = (length: number): number => Math.ceil(length / 32) * 4

export function createBitmap(
  length: number,
  memory: ArrayBuffer | SharedArrayBuffer = new ArrayBuffer(bitmapBytes(length)),
): Bitmap {
  const words = new Uint32Array(memory, 0, Math.ceil(length / 32))

  /** Whole words in one call: a loop over a gigabyte's bits takes a millisecond as long as it is not compiled. */
  function fill(start: number, end: number, value: boolean): void {
    const firstWhole = (start + 31) >>> 5
    const endWhole = end >>> 5
    if (firstWhole > endWhole) {
      fillPart(start, end, value)
      return
    }
    fillPart(start, firstWhole * 32, value)
    if (firstWhole < endWhole) words.fill(value ? 0xffff_ffff : 0, firstWhole, endWhole)
    fillPart(endWhole * 32, end, value)
  }

  /** Bits of one word, less than all of it. */
  function fillPart(start: number, end: number, value: boolean): void {
    if (start >= end) return
    const mask = ((1 << (end - start)) - 1) << (start & 31)
    const index = start >>> 5
    words[index] = value ? words[index]! | mask : words[index]! & ~mask
  }

  /** First bit in [from, end) that is set after its word was xored with `flip`; `end` when there is none. */
  function next(from: number, end: number, flip: number): number {
    if (from >= end) return end
    const last = (end - 1) >>> 5
    let index = from >>> 5
    let word = (words[index]! ^ flip) & (-1 << (from & 31))
    while (word === 0) {
      index++
      if (index > last) return end
      word = words[index]! ^ flip
    }
    return Math.min(end, index * 32 + 31 - Math.clz32(word & -word))
  }

  function previous(before: number): number {
    if (before <= 0) return -1
    let index = (before - 1) >>> 5
    let word = words[index]! & (0xffff_ffff >>> (31 - ((before - 1) & 31)))
    while (word === 0) {
      index--
      if (index < 0) return -1
      word = words[index]!
    }
    return index * 32 + 31 - Math.clz32(word)
  }

  return {
    length,
    words,
    get: (bit) => (words[bit >>> 5]! & (1 << (bit & 31))) !== 0,
    set: (bit) => {
      words[bit >>> 5]! |= 1 << (bit & 31)
    },
    clear: (bit) => {
      words[bit >>> 5]! &= ~(1 << (bit & 31))
    },
    setRange: (start, end) => fill(start, end, true),
    clearRange: (start, end) => fill(start, end, false),
    nextSet: (from, end = length) => {
      const bit = next(from, end, 0)
      return bit === end ? -1 : bit
    },
    previousSet: previous,
    nextClear: (from, end = length) => next(from, end, -1),
    count: () => {
      let total = 0
      for (let w = 0; w < words.length; w++) total += popcount(words[w]!)
      return total
    },
    any: (start, end) => next(start, end, 0) < end,
  }
}

/** Sets in `into` every bit that `from` has. Both of one length. */
export function merge(into: Bitmap, from: Bitmap): void {
  const { words } = from
  for (let w = 0; w < words.length; w++) into.words[w]! |= words[w]!
}

/** Clears in `from` every bit that `what` has. Both of one length. */
export function subtract(from: Bitmap, what: Bitmap): void {
  const { words } = what
  for (let w = 0; w < words.length; w++) from.words[w]! &= ~words[w]!
}

/** The bits of `a` that `b` has not. Both of one length. */
export function difference(a: Bitmap, b: Bitmap): Bitmap {
  const result = createBitmap(a.length)
  result.words.set(a.words)
  subtract(result, b)
  return result
}

/** Calls `onRun(start, end)` for each maximal run of set bits, ascending. */
export function eachRun(bitmap: Bitmap, onRun: (start: number, end: number) => void): void {
  for (let start = bitmap.nextSet(0); start >= 0; ) {
    const end = bitmap.nextClear(start)
    onRun(start, end)
    start = end >= bitmap.length ? -1 : bitmap.nextSet(end)
  }
}

function popcount(word: number): number {
  let v = word - ((word >>> 1) & 0x5555_5555)
  v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333)
  return Math.imul((v + (v >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24
}
