// How long a guest thread stands still at an absent page: the fault goes over TCP on this host to a source that answers
// with the page. Once in C, once with the engine; the guest is the same machine code (c/touch.c), and nothing else is sent.

import { type Benchmark, quantile, type Sample } from './benchmark.js'
import { cLibrary, cProgram, nodeChild, pinned, runForJson } from './programs.js'

const PAGES = 16_384
/** Faults until everything is compiled that will be: the last of it behind some 4000. What they take is told apart. */
const WARM_UP = 8192
/** A migration begins cold: the median of its first faults. */
const FIRST = 256
/** A read that takes less has found its page there. */
const FAULT_NS_MIN = 1000

type Wrap = (command: readonly string[]) => readonly string[]

function benchmark(name: string, about: string, rounds: number, wrap: Wrap): Benchmark {
  let seed = 0
  const nextSeed = (): string => String(++seed)
  return {
    name,
    about,
    rounds,
    metrics: [
      { name: 'p50', unit: 'us' },
      { name: 'p99', unit: 'us' },
      { name: `p50 of the first ${FIRST}`, unit: 'us' },
      { name: `p99 of the first ${WARM_UP}`, unit: 'us' },
    ],
    variants: [
      {
        name: 'c',
        run: async () =>
          evaluate(await runForJson(wrap([cProgram('fault-service', 'touch'), String(PAGES), nextSeed()]))),
      },
      {
        name: 'engine',
        run: async () =>
          evaluate(
            await runForJson(
              wrap(nodeChild('fault-service.child', String(PAGES), nextSeed(), cLibrary('touch'))),
            ),
          ),
      },
    ],
    ratios: [['engine', 'c']],
  }
}

function evaluate(ns: readonly number[]): Sample {
  const faultsUs = (from: number, to: number): Float64Array =>
    Float64Array.from(
      ns.slice(from, to).filter((each) => each >= FAULT_NS_MIN),
      (each) => each / 1000,
    ).sort()
  const warm = faultsUs(WARM_UP, ns.length)
  return {
    p50: quantile(warm, 0.5),
    p99: quantile(warm, 0.99),
    [`p50 of the first ${FIRST}`]: quantile(faultsUs(0, FIRST), 0.5),
    [`p99 of the first ${WARM_UP}`]: quantile(faultsUs(0, WARM_UP), 0.99),
  }
}

export const faultService = benchmark(
  'fault-service',
  `a guest thread waits for ${PAGES} absent pages, one by one, over TCP; all threads on one CPU`,
  9,
  pinned,
)

export const faultServiceUnpinned = benchmark(
  'fault-service-unpinned',
  'the same on all CPUs; waking another CPU dominates, and where threads run is the scheduler’s mood',
  5,
  (command) => command,
)
