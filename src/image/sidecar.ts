// The sidecar of an image, `vm.img.json`: what the image is, how it was made, checksums. Runs wherever an image is opened
// or written. QEMU does not know it, and an image is whole without it; with it, damage to page data is noticed.

import { readFileSync, statSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { ImageError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { CHECKSUM_DIGITS, CHUNK_BYTES, checksumDigits } from './checksums.js'
import { onFile } from './file.js'

const VERSION = 1

export interface SidecarBlock {
  /** idstr. */
  readonly name: string
  /** Bytes. */
  readonly length: number
  /** Target page, bytes. */
  readonly pageSize: number
  /** File offset of the page region. */
  readonly pagesOffset: number
  readonly presentPages: number
  /** CRC-32 of each chunk with a present page, in order: eight hexadecimal digits a chunk. */
  readonly crc32: string
}

/** How an image came to be. For people; nothing depends on it. */
export interface Made {
  /** What was done: `park`, `convert`. */
  readonly how: string
  /** Program and version. */
  readonly by: string
  /** ISO 8601, UTC. */
  readonly at: string
  /** File or address that it was made from, if there was one. */
  readonly from: string | null
}

export interface Sidecar {
  readonly version: number
  /** Machine type, as in the configuration section. */
  readonly machine: string
  /** Version of the QEMU that saved the guest, if it is known. */
  readonly qemu: string | null
  readonly made: Made
  /** Length of the image, bytes. */
  readonly fileBytes: number
  readonly chunkBytes: number
  /** CRC-32 of all that is not page data: see `metadataChecksum`. */
  readonly metadataCrc32: string
  readonly blocks: readonly SidecarBlock[]
}

export const sidecarPath = (image: string): string => `${image}.json`

/** The text of the file. Its last field is the checksum of the others. */
export function encodeSidecar(fields: Omit<Sidecar, 'version' | 'chunkBytes'>): string {
  const { machine, qemu, made, fileBytes, metadataCrc32, blocks } = fields
  const sidecar: Sidecar = {
    version: VERSION,
    machine,
    qemu,
    made,
    fileBytes,
    chunkBytes: CHUNK_BYTES,
    metadataCrc32,
    blocks,
  }
  return `${JSON.stringify({ ...sidecar, sidecarCrc32: checksumOf(sidecar) }, null, 1)}\n`
}

const checksumOf = (sidecar: object): string => checksumDigits(crc32(JSON.stringify(sidecar)))

/** Undefined when there is none. @throws ImageError naming the field for anything that is not as `encodeSidecar` writes it. */
export function readSidecar(image: string): Sidecar | undefined {
  const path = sidecarPath(image)
  const stat = onFile('stat', path, () => statSync(path, { throwIfNoEntry: false }))
  if (stat === undefined) return undefined
  if (stat.size > LIMITS.sidecarBytesMax)
    throw new ImageError(`sidecar of ${stat.size} bytes is too long`, path, LIMITS.sidecarBytesMax)
  return parseSidecar(
    onFile('read', path, () => readFileSync(path, 'utf8')),
    path,
  )
}

/** A check answers what it expects, or undefined when the value will do. */
type Check = (value: unknown, where: string) => string | undefined

const text: Check = (value) => (typeof value === 'string' && value.length > 0 ? undefined : 'a text')
const textOrNull: Check = (value) => (value === null ? undefined : text(value, ''))
const exactly =
  (expected: number): Check =>
  (value) =>
    value === expected ? undefined : `${expected}`
const count: Check = (value) =>
  Number.isSafeInteger(value) && (value as number) >= 0 ? undefined : 'a whole number'
const pages: Check = (value) =>
  count(value, '') === undefined && (value as number) % TARGET_PAGE_BYTES === 0
    ? undefined
    : `a multiple of ${TARGET_PAGE_BYTES}`
const digits =
  (checksums?: number): Check =>
  (value) =>
    typeof value === 'string' &&
    /^[0-9a-f]*$/.test(value) &&
    value.length % CHECKSUM_DIGITS === 0 &&
    (checksums === undefined || value.length === checksums * CHECKSUM_DIGITS)
      ? undefined
      : `${CHECKSUM_DIGITS} hexadecimal digits a checksum`
const time: Check = (value) =>
  typeof value === 'string' && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value) && !Number.isNaN(Date.parse(value))
    ? undefined
    : 'a time, as 2026-01-31T12:00:00.000Z'

type Fields = Readonly<Record<string, Check>>

const MADE: Fields = { how: text, by: text, at: time, from: textOrNull }
const BLOCK: Fields = {
  name: text,
  length: pages,
  pageSize: exactly(TARGET_PAGE_BYTES),
  pagesOffset: pages,
  presentPages: count,
  crc32: digits(),
}
const SIDECAR: Fields = {
  version: exactly(VERSION),
  machine: text,
  qemu: textOrNull,
  made: () => undefined,
  fileBytes: count,
  chunkBytes: exactly(CHUNK_BYTES),
  metadataCrc32: digits(1),
  blocks: (value) =>
    Array.isArray(value) && value.length <= LIMITS.ramBlocksMax ? undefined : 'a list of blocks',
  sidecarCrc32: digits(1),
}

/** @throws ImageError naming the field, as `blocks[2].length`; its offset is always 0. */
export function parseSidecar(json: string, path: string): Sidecar {
  const refuse = (where: string, expected: string, got: unknown): never => {
    const short = JSON.stringify(got)?.slice(0, 60) ?? 'nothing'
    throw new ImageError(`sidecar field ${where}: expected ${expected}, got ${short}`, path, 0)
  }
  const check = (value: unknown, where: string, fields: Fields): void => {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      refuse(where === '' ? '(all)' : where, 'an object', value)
    const prefix = where === '' ? '' : `${where}.`
    for (const [name, field] of Object.entries(fields)) {
      const got = (value as Record<string, unknown>)[name]
      const expected = field(got, prefix + name)
      if (expected !== undefined) refuse(prefix + name, expected, got)
    }
    const unknown = Object.keys(value as object).find((name) => !Object.hasOwn(fields, name))
    if (unknown !== undefined) refuse(prefix + unknown, 'no such field', 'one')
  }

  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (error) {
    throw new ImageError(`sidecar is not JSON: ${(error as Error).message}`, path, 0)
  }
  check(value, '', SIDECAR)
  const { sidecarCrc32, ...sidecar } = value as Sidecar & { sidecarCrc32: string }
  check(sidecar.made, 'made', MADE)
  for (const [index, block] of sidecar.blocks.entries()) check(block, `blocks[${index}]`, BLOCK)
  if (checksumOf(sidecar) !== sidecarCrc32)
    refuse('sidecarCrc32', `${checksumOf(sidecar)}, the checksum of the other fields`, sidecarCrc32)
  return sidecar
}
