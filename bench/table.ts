// The results for people: a row for each variant and each ratio, a column for each metric.

import type { Benchmark, Result, Summary } from './benchmark.js'

export function formatTable(benchmark: Benchmark, result: Result): string {
  const { name, about, rounds, metrics, variants, ratios } = benchmark
  const of = (row: string, summary: (metric: string) => Summary | undefined): string[] => [
    row,
    ...metrics.map((metric) => formatCell(summary(metric.name))),
  ]
  const rows = [
    ['', ...metrics.map((metric) => `${metric.name}, ${metric.unit}`)],
    ...variants.map((variant) =>
      of(variant.name, (metric) =>
        result.measurements.find((m) => m.variant === variant.name && m.metric === metric),
      ),
    ),
    ...ratios.map(([one, other]) =>
      of(`${one} / ${other}`, (metric) => {
        const ratio = result.ratios.find((r) => r.ratio === `${one}/${other}` && r.metric === metric)
        return ratio === undefined ? undefined : { ...ratio, median: ratio.ofMedians }
      }),
    ),
  ]
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const lines = rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd(),
  )
  return [`${name}: ${about} (${rounds} rounds, median [min–max])`, ...lines].join('\n')
}

function formatCell(summary: Summary | undefined): string {
  if (summary === undefined || Number.isNaN(summary.median)) return '–'
  const [median, min, max] = [summary.median, summary.min, summary.max].map(formatNumber)
  return `${median} [${min}–${max}]`
}

/** Three digits that count. */
export function formatNumber(value: number): string {
  if (value >= 100) return value.toFixed(0)
  return value.toFixed(value >= 10 ? 1 : value >= 1 || value === 0 ? 2 : 3)
}
