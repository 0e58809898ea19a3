// The results for people.

import type { Benchmark, Result } from './benchmark.js'

export function formatTable(benchmark: Benchmark, result: Result): string {
  const rows = [
    ['', 'variant', 'median', 'min', 'max', 'unit'],
    ...result.measurements.map((m) => [
      m.metric,
      m.variant,
      ...[m.median, m.min, m.max].map(formatNumber),
      m.unit,
    ]),
    ...result.ratios.map((r) => [
      r.metric,
      r.ratio,
      ...[r.ofMedians, r.min, r.max].map((value) => value.toFixed(2)),
      'ratio',
    ]),
  ]
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const lines = rows.map((row) =>
    row.map((cell, i) => (i >= 2 && i <= 4 ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join('  '),
  )
  return [`${benchmark.name}: ${benchmark.about} (${benchmark.rounds} rounds)`, ...lines].join('\n')
}

function formatNumber(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2)
}
