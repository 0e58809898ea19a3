// How values on the command line are read: sizes, times, counts. Pure. Each reader throws UsageError with what it wants.

import { UsageError } from '../errors.js'

export type Read<T> = (text: string) => T

const SIZE_UNITS = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 } as const
const DURATION_UNITS_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 } as const

const wanted = (what: string, text: string): never => {
  throw new UsageError(`wants ${what}, not "${text}"`)
}

/** Bytes: `4096`, `128M`, `1.5G`, `64KiB`; units are powers of 1024. */
export const size: Read<number> = (text) => {
  const [, digits, unit = ''] = /^(\d+(?:\.\d+)?)([kmgt])?(?:i?b)?$/i.exec(text) ?? []
  const bytes = Number(digits) * SIZE_UNITS[unit.toLowerCase() as keyof typeof SIZE_UNITS]
  return Number.isSafeInteger(bytes) ? bytes : wanted('a size like 4096, 128M or 1G', text)
}

/** Milliseconds: `25ms`, `2s`, `1.5m`; a number alone would be a guess, so it is refused, but for 0. */
export const duration: Read<number> = (text) => {
  if (text === '0') return 0
  const [, digits, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h)$/i.exec(text) ?? []
  if (unit === undefined) return wanted('a time like 25ms, 2s or 5m', text)
  return Number(digits) * DURATION_UNITS_MS[unit.toLowerCase() as keyof typeof DURATION_UNITS_MS]
}

/** Milliseconds in each second: `50ms/s`, or as `5%`. */
export const stallBudget: Read<number> = (text) => {
  if (text.endsWith('%')) return share(text) * 1000
  return text.endsWith('/s')
    ? duration(text.slice(0, -2))
    : wanted('a time in each second like 50ms/s, or 5%', text)
}

/** A time, or `forever`, which is Infinity. */
export const durationOrForever: Read<number> = (text) =>
  text === 'forever' ? Number.POSITIVE_INFINITY : duration(text)

/** A whole number of at least `min`. */
export const count =
  (min = 0): Read<number> =>
  (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
    return Number.isSafeInteger(value) && value >= min
      ? value
      : wanted(`a whole number of at least ${min}`, text)
  }

/** 0 to 1, or as `50%`. */
export const share: Read<number> = (text) => {
  const [, digits, percent] = /^(\d+(?:\.\d+)?)(%)?$/.exec(text) ?? []
  const value = Number(digits) / (percent === undefined ? 1 : 100)
  return value >= 0 && value <= 1 ? value : wanted('a share like 0.5 or 50%', text)
}

export interface ByteRange {
  readonly start: number
  readonly end: number
}

/** `1M-100M`: from the first, up to but not with the second. */
export const range: Read<ByteRange> = (text) => {
  const [from, to, ...rest] = text.split('-')
  if (from === undefined || to === undefined || rest.length > 0) return wanted('a range like 1M-100M', text)
  return { start: size(from), end: size(to) }
}

export const oneOf =
  <const T extends string>(choices: readonly T[]): Read<T> =>
  (text) =>
    choices.find((choice) => choice === text) ?? wanted(`one of ${choices.join(', ')}`, text)

export const text: Read<string> = (given) => (given === '' ? wanted('something', given) : given)
