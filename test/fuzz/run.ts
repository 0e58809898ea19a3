// Runs the cases of a target one after the other, each from a seed of its own, and watches that they end and leave nothing.

import { Worker } from 'node:worker_threads'
import { createRandom } from '../engine/random.js'
import { settledRssBytes } from './memory.js'
import { kindOf, type Target } from './target.js'

const MiB = 1024 * 1024
/** No case takes a hundredth of this on an idle machine. */
const CASE_MS_MAX = 60_000
/** Compiling the code, and the first growth of the heap. */
const WARM_UP_CASES = 500
/** Between two looks at the memory that is in use. */
const CASES_PER_LOOK = 10_000
/** Code that is compiled late, and holes in the heaps. */
const GROWTH_BYTES_MAX = 48 * MiB

export interface RunOptions {
  readonly firstSeed: number
  readonly cases?: number
  readonly seconds?: number
}

export interface RunReport {
  readonly target: string
  readonly firstSeed: number
  readonly cases: number
  readonly casesPerSecond: number
  /** How the cases ended, with the count of each, most frequent first. */
  readonly endings: ReadonlyMap<string, number>
  /** Resident and in use: after the warm-up, at the most, and at the end. */
  readonly rssMiB: { readonly start: number; readonly most: number; readonly end: number }
}

/** A case failed: which one, and how to have it again. */
export class FuzzFailure extends Error {
  constructor(target: string, seed: number, cause: unknown) {
    const again = `node dist/test/fuzz/main.js ${target} --seed ${seed} --cases 1`
    super(`${target}: seed ${seed}: ${cause instanceof Error ? cause.message : cause}\nagain: ${again}`, {
      cause,
    })
  }
}

/**
 * A thread that ends the process, loudly, when a case does not end: the thread that hangs cannot say so itself.
 * `cell`: [0] counts cases, [1] is the seed of the one under way.
 */
const WATCHDOG = `
  const { workerData: { cell, target, limitMs } } = require('node:worker_threads')
  const { writeSync } = require('node:fs')
  for (let seen = -1, since = 0; ; ) {
    const now = Atomics.load(cell, 0)
    if (now === 0x7fffffff) break
    if (now !== seen) { seen = now; since = Date.now() }
    else if (Date.now() - since > limitMs) {
      const seed = Atomics.load(cell, 1)
      writeSync(2, target + ': seed ' + seed + ' does not end\\nagain: node dist/test/fuzz/main.js '
        + target + ' --seed ' + seed + ' --cases 1\\n')
      process.kill(process.pid, 'SIGKILL')
    }
    Atomics.wait(cell, 0, now, 1000)
  }`

/** @throws FuzzFailure for the first case that fails; Error when something is left over at the end. */
export async function runTarget(target: Target, options: RunOptions): Promise<RunReport> {
  const { firstSeed, cases = Number.POSITIVE_INFINITY, seconds = Number.POSITIVE_INFINITY } = options
  const cell = new Int32Array(new SharedArrayBuffer(8))
  const watchdog = new Worker(WATCHDOG, {
    eval: true,
    workerData: { cell, target: target.name, limitMs: CASE_MS_MAX },
  })
  await new Promise((resolve) => watchdog.once('online', resolve)) // so that its descriptors are not the target's
  const endings = new Map<string, number>()
  const opened = await target.open()
  const startMs = performance.now()
  let done = 0
  let rssStart = await settledRssBytes()
  let rssMost = rssStart
  async function look(): Promise<number> {
    const rss = await settledRssBytes()
    rssMost = Math.max(rssMost, rss)
    if (done > WARM_UP_CASES && rss - rssStart > GROWTH_BYTES_MAX) {
      const grown = Math.round((rss - rssStart) / MiB)
      throw new Error(`${target.name}: memory in use grew by ${grown} MiB in ${done} cases`)
    }
    return rss
  }
  try {
    for (; done < cases && performance.now() - startMs < seconds * 1000; done++) {
      const seed = firstSeed + done
      Atomics.store(cell, 1, seed)
      Atomics.add(cell, 0, 1)
      try {
        const kind = kindOf(await opened.run(createRandom(seed)))
        endings.set(kind, (endings.get(kind) ?? 0) + 1)
      } catch (cause) {
        throw new FuzzFailure(target.name, seed, cause)
      }
      if (done === WARM_UP_CASES) rssMost = rssStart = await settledRssBytes()
      else if (done % CASES_PER_LOOK === 0) await look()
    }
    const rssEnd = await look()
    return {
      target: target.name,
      firstSeed,
      cases: done,
      casesPerSecond: Math.round(done / ((performance.now() - startMs) / 1000)),
      endings: new Map([...endings].sort(([, a], [, b]) => b - a)),
      rssMiB: {
        start: Math.round(rssStart / MiB),
        most: Math.round(rssMost / MiB),
        end: Math.round(rssEnd / MiB),
      },
    }
  } finally {
    try {
      await opened.close()
    } finally {
      const exited = new Promise((resolve) => watchdog.once('exit', resolve))
      Atomics.store(cell, 0, 0x7fff_ffff)
      Atomics.notify(cell, 0)
      await exited
    }
  }
}
