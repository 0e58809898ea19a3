// Seeded randomness, so that a failing case can be run again: FARFAULT_SEED and FARFAULT_CASES choose what is run.

export interface Random {
  /** 0 to `below` - 1. */
  integer(below: number): number
  pick<T>(list: readonly T[]): T
  /** True once in `times`. */
  oneIn(times: number): boolean
}

/** A generator of its own for each seed (a 32-bit counter, hashed). */
export function createRandom(seed: number): Random {
  let state = seed | 0
  function next(): number {
    state = (state + 0x9e3779b9) | 0
    let hash = Math.imul(state ^ (state >>> 16), 0x85ebca6b)
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
    return ((hash ^ (hash >>> 16)) >>> 0) / 2 ** 32
  }
  const integer = (below: number): number => Math.floor(next() * below)
  return { integer, pick: (list) => list[integer(list.length)]!, oneIn: (times) => integer(times) === 0 }
}

/** Cases that a test runs: each has a seed of its own, `first` + its number. */
export const SEEDS = {
  first: Number(process.env.FARFAULT_SEED ?? 1),
  /** `usual` unless the environment says otherwise. */
  count: (usual: number): number => Number(process.env.FARFAULT_CASES ?? usual),
} as const
