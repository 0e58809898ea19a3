// What a benchmark is, and how its variants are run: in turn, A B A B, so that a slow minute of the machine meets all.

/** What one run of one variant measured, by the metric's name. */
export type Sample = Readonly<Record<string, number>>

export interface Variant {
  readonly name: string
  /** One run, in processes of its own: nothing that an earlier run warmed up may help. */
  run(): Promise<Sample>
}

export interface Metric {
  readonly name: string
  /** `us`, `ms`, `GiB/s`, … */
  readonly unit: string
}

export interface Benchmark {
  readonly name: string
  /** One line for the table: what is measured. */
  readonly about: string
  readonly rounds: number
  readonly metrics: readonly Metric[]
  readonly variants: readonly Variant[]
  /** Pairs of variants whose medians are compared, first divided by second. */
  readonly ratios: readonly (readonly [string, string])[]
  /** Ends what variants have left for the next round. */
  finish?(): Promise<void>
}

/** The same with other rounds, or with only the variants that have one of `only` in their name. */
export function narrow(
  benchmark: Benchmark,
  { rounds = benchmark.rounds, only }: { rounds: number | undefined; only: readonly string[] },
): Benchmark {
  const kept = ({ name }: Variant): boolean => only.length === 0 || only.some((part) => name.includes(part))
  const variants = benchmark.variants.filter(kept)
  const names = variants.map(({ name }) => name)
  const ratios = benchmark.ratios.filter((pair) => pair.every((name) => names.includes(name)))
  return { ...benchmark, rounds, variants, ratios }
}

export interface Summary {
  readonly median: number
  readonly min: number
  readonly max: number
}

export interface Measurement extends Summary {
  readonly benchmark: string
  readonly metric: string
  readonly unit: string
  readonly variant: string
  /** Of each round, in order. */
  readonly values: readonly number[]
}

export interface Ratio extends Summary {
  readonly benchmark: string
  readonly metric: string
  /** `engine/c` */
  readonly ratio: string
  /** Median of the one by median of the other. */
  readonly ofMedians: number
  /** Of the rounds, each round's own two values compared; `median`, `min` and `max` are theirs. */
  readonly values: readonly number[]
}

export interface Result {
  readonly measurements: readonly Measurement[]
  readonly ratios: readonly Ratio[]
}

/**
 * Every variant once, then every variant again, `rounds` times, and once before that without counting: it fills the page cache,
 * and compiles the C programs.
 */
export async function runBenchmark(
  benchmark: Benchmark,
  progress: (done: number, all: number) => void,
): Promise<Result> {
  const { rounds, variants } = benchmark
  const samples = new Map<string, Sample[]>(variants.map((variant) => [variant.name, []]))
  try {
    for (let round = 0; round <= rounds; round++) {
      for (const [i, variant] of variants.entries()) {
        progress(round * variants.length + i, (rounds + 1) * variants.length)
        const sample = await variant.run()
        if (round > 0) samples.get(variant.name)!.push(sample)
      }
    }
  } finally {
    await benchmark.finish?.()
  }
  return summarise(benchmark, samples)
}

export function summarise(benchmark: Benchmark, samples: ReadonlyMap<string, readonly Sample[]>): Result {
  const { name, metrics, variants, ratios } = benchmark
  const valuesOf = (variant: string, metric: string): number[] =>
    samples.get(variant)!.map((sample) => sample[metric]!)
  return {
    measurements: metrics.flatMap((metric) =>
      variants.map((variant) => {
        const values = valuesOf(variant.name, metric.name)
        const at = { benchmark: name, metric: metric.name, unit: metric.unit, variant: variant.name }
        return { ...at, ...summary(values), values }
      }),
    ),
    ratios: metrics.flatMap((metric) =>
      ratios.map(([one, other]) => {
        const ones = valuesOf(one, metric.name)
        const others = valuesOf(other, metric.name)
        const values = ones.map((value, round) => value / others[round]!)
        const ofMedians = summary(ones).median / summary(others).median
        return {
          benchmark: name,
          metric: metric.name,
          ratio: `${one}/${other}`,
          ofMedians,
          ...summary(values),
          values,
        }
      }),
    ),
  }
}

export function summary(values: readonly number[]): Summary {
  const sorted = Float64Array.from(values).sort()
  return { median: quantile(sorted, 0.5), min: sorted[0]!, max: sorted[sorted.length - 1]! }
}

/** Of values in ascending order; between two of them, the line from one to the other. */
export function quantile(sorted: ArrayLike<number>, q: number): number {
  const at = (sorted.length - 1) * q
  const low = Math.floor(at)
  const high = Math.ceil(at)
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (at - low)
}
