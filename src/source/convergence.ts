// Will precopy end by itself? Pure; asked by the source thread after each pass.

export interface PassResult {
  /** Bytes this pass put on the wire, and how long it took. */
  readonly sentBytes: number
  readonly tookMs: number
  /** Bytes of RAM that the guest has dirtied meanwhile. */
  readonly dirtyBytes: number
}

export type Verdict = 'converged' | 'continue' | 'diverges'

/** So many passes in a row that do not halve what is left, and precopy is given up. */
const FRUITLESS_PASSES_MAX = 1
const PASSES_MAX = 30

/** Milliseconds that sending the rest with the guest stopped would take, at the speed of the last pass. */
export function expectedDowntimeMs(last: PassResult): number {
  if (last.dirtyBytes === 0) return 0
  // A pass that sent next to nothing says nothing about the link: assume 100 MB/s rather than divide by zero.
  const bytesPerMs = last.tookMs > 0 && last.sentBytes > 65_536 ? last.sentBytes / last.tookMs : 100_000
  return last.dirtyBytes / bytesPerMs
}

/**
 * @param passes all passes so far, oldest first; the first sent all of RAM.
 * @param downtimeLimitMs how long the guest may stand still at the end of precopy.
 */
export function judge(passes: readonly PassResult[], downtimeLimitMs: number): Verdict {
  const last = passes[passes.length - 1]
  if (last === undefined) return 'continue'
  if (expectedDowntimeMs(last) <= downtimeLimitMs) return 'converged'
  if (passes.length >= PASSES_MAX) return 'diverges'
  let fruitless = 0
  for (let i = passes.length - 1; i > 0; i--) {
    if (passes[i]!.dirtyBytes <= passes[i - 1]!.dirtyBytes / 2) break
    fruitless++
  }
  return fruitless >= FRUITLESS_PASSES_MAX ? 'diverges' : 'continue'
}
