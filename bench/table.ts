// Results for people: a row for each variant and each ratio, a column for each metric.

import type { Benchmark, Measurement, Ratio, Result, Summary } from './benchmark.js'

/** Head first; the first cell of a row says what it is. */
export function resultRows({ measurements, ratios }: Result): readonly (readonly string[])[] {
  const metrics = [...new Map(measurements.map(({ metric, unit }) => [metric, unit]))]
  const row = <T extends Measurement | Ratio>(
    name: string,
    all: readonly T[],
    summary: (of: T) => Summary,
  ) => [
    name,
    ...metrics.map(([metric]) => {
      const found = all.find((each) => each.metric === metric)
      return found === undefined ? '–' : formatCell(summary(found))
    }),
  ]
  const variants = new Set(measurements.map(({ variant }) => variant))
  const pairs = new Set(ratios.map(({ ratio }) => ratio))
  return [
    ['', ...metrics.map(([metric, unit]) => `${metric}, ${unit}`)],
    ...Array.from(variants, (name) =>
      row(
        name,
        measurements.filter(({ variant }) => variant === name),
        (m) => m,
      ),
    ),
    ...Array.from(pairs, (name) =>
      row(
        name.replace('/', ' / '),
        ratios.filter(({ ratio }) => ratio === name),
        (r) => ({ ...r, median: r.ofMedians }),
      ),
    ),
  ]
}

export function formatTable({ name, about, rounds }: Benchmark, result: Result): string {
  const rows = resultRows(result)
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd()
  return [`${name}: ${about} (${rounds} rounds, median [min–max])`, ...rows.map(line)].join('\n')
}

function formatCell({ median, min, max }: Summary): string {
  if (!Number.isFinite(median)) return '–'
  return `${formatNumber(median)} [${formatNumber(min)}–${formatNumber(max)}]`
}

/** Three digits that count; a dash for what is no number, of which JSON makes null. */
function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return '–'
  if (value >= 100) return value.toFixed(0)
  return value.toFixed(value >= 10 ? 1 : value >= 1 || value === 0 ? 2 : 3)
}
