// Files beside an image are JSON objects with known fields and a checksum: how they are read and checked. Runs wherever such
// a file is read or written.

import { readFileSync, statSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { ImageError } from '../errors.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { CHECKSUM_DIGITS, checksumDigits } from './checksums.js'
import { onFile } from './file.js'

/** The text of the file, or undefined when there is none. @throws ImageError when it is longer than `bytesMax`. */
export function readBounded(path: string, what: string, bytesMax: number): string | undefined {
  const stat = onFile('stat', path, () => statSync(path, { throwIfNoEntry: false }))
  if (stat === undefined) return undefined
  if (stat.size > bytesMax) throw new ImageError(`${what} of ${stat.size} bytes is too long`, path, bytesMax)
  return onFile('read', path, () => readFileSync(path, 'utf8'))
}

export const checksumOf = (fields: object): string => checksumDigits(crc32(JSON.stringify(fields)))

/** A check answers what it expects, or undefined when the value will do. */
export type Check = (value: unknown, where: string) => string | undefined

export const text: Check = (value) => (typeof value === 'string' && value.length > 0 ? undefined : 'a text')
export const textOrNull: Check = (value) => (value === null ? undefined : text(value, ''))
export const exactly =
  (expected: number): Check =>
  (value) =>
    value === expected ? undefined : `${expected}`
export const count: Check = (value) =>
  Number.isSafeInteger(value) && (value as number) >= 0 ? undefined : 'a whole number'
export const pageAligned: Check = (value) =>
  count(value, '') === undefined && (value as number) % TARGET_PAGE_BYTES === 0
    ? undefined
    : `a multiple of ${TARGET_PAGE_BYTES}`
export const digits =
  (checksums?: number): Check =>
  (value) =>
    typeof value === 'string' &&
    /^[0-9a-f]*$/.test(value) &&
    value.length % CHECKSUM_DIGITS === 0 &&
    (checksums === undefined || value.length === checksums * CHECKSUM_DIGITS)
      ? undefined
      : `${CHECKSUM_DIGITS} hexadecimal digits a checksum`
export const time: Check = (value) =>
  typeof value === 'string' && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value) && !Number.isNaN(Date.parse(value))
    ? undefined
    : 'a time, as 2026-01-31T12:00:00.000Z'

export type Fields = Readonly<Record<string, Check>>

export interface ParsedFields {
  readonly value: unknown
  /** @throws ImageError naming the field of `value` that is not as the table says. */
  check(value: unknown, where: string, fields: Fields): void
  /** @throws ImageError when `digits`, the field called `where`, is not the checksum of the others. */
  checkSum(where: string, others: object, digits: string): void
  /** @throws ImageError */
  refuse(where: string, expected: string, got: unknown): never
}

/** `what`: the file in words. @throws ImageError naming the field, as `blocks[2].length`; its offset is always 0. */
export function parseFields(json: string, what: string, path: string): ParsedFields {
  const refuse = (where: string, expected: string, got: unknown): never => {
    const short = JSON.stringify(got)?.slice(0, 60) ?? 'nothing'
    throw new ImageError(`${what} field ${where}: expected ${expected}, got ${short}`, path, 0)
  }
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (error) {
    throw new ImageError(`${what} is not JSON: ${(error as Error).message}`, path, 0)
  }
  return {
    value,
    refuse,
    check(object, where, fields) {
      if (typeof object !== 'object' || object === null || Array.isArray(object))
        refuse(where === '' ? '(all)' : where, 'an object', object)
      const prefix = where === '' ? '' : `${where}.`
      for (const [name, field] of Object.entries(fields)) {
        const got = (object as Record<string, unknown>)[name]
        const expected = field(got, prefix + name)
        if (expected !== undefined) refuse(prefix + name, expected, got)
      }
      const unknown = Object.keys(object as object).find((name) => !Object.hasOwn(fields, name))
      if (unknown !== undefined) refuse(prefix + unknown, 'no such field', 'one')
    },
    checkSum(where, others, got) {
      const expected = checksumOf(others)
      if (got !== expected) refuse(where, `${expected}, the checksum of the other fields`, got)
    },
  }
}
