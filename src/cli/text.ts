// Numbers for people. Pure.

const MiB = 1024 * 1024
const GiB = 1024 * MiB

/** `104 MiB`, `1.5 GiB`, `12 KiB`. */
export function bytes(count: number): string {
  if (count >= 10 * GiB) return `${Math.round(count / GiB)} GiB`
  if (count >= GiB) return `${(count / GiB).toFixed(1)} GiB`
  if (count >= 10 * MiB) return `${Math.round(count / MiB)} MiB`
  if (count >= MiB) return `${(count / MiB).toFixed(1)} MiB`
  return `${Math.ceil(count / 1024)} KiB`
}

/** `12.1 ms`, `887 ms`, `2.30 s`. */
export function milliseconds(ms: number): string {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`
  return ms >= 100 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`
}

/** `61 µs`, `3.6 ms`. */
export function microseconds(us: number): string {
  return us < 1000 ? `${Math.round(us)} µs` : milliseconds(us / 1000)
}

/** `25,347`. */
export const number = (value: number): string => value.toLocaleString('en-US')

/** Singular or plural: `1 fault`, `2 faults`. */
export const counted = (value: number, noun: string): string =>
  `${number(value)} ${noun}${value === 1 ? '' : 's'}`

export const seconds = (date: Date): string => date.toTimeString().slice(0, 8)

/** Columns as wide as their widest cell: the first and texts at the left, numbers at the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const widths = head.map((name, column) =>
    Math.max(name.length, ...rows.map((row) => (row[column] ?? '').length)),
  )
  return [head, ...rows].map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ')
      .replace(/^/, '  '),
  )
}
