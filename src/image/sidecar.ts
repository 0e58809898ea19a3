// The sidecar of an image, `vm.img.json`: what the image is, how it was made, checksums. Runs wherever an image is opened
// or written. QEMU does not know it, and an image is whole without it; with it, damage to page data is noticed.

import { LIMITS } from '../limits.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { CHUNK_BYTES } from './checksums.js'
import {
  type Check,
  checksumOf,
  count,
  digits,
  exactly,
  type Fields,
  pageAligned,
  parseFields,
  readBounded,
  text,
  textOrNull,
  time,
} from './fields.js'

const VERSION = 2

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
  /** Low half of the XXH64 of each chunk with a present page, in order: eight hexadecimal digits a chunk. */
  readonly xxh64: string
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
/** What its runs asked for: working-set-file.ts. */
export const workingSetPath = (image: string): string => `${image}.workingset.json`

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

/** Undefined when there is none. @throws ImageError naming the field for anything that is not as `encodeSidecar` writes it. */
export function readSidecar(image: string): Sidecar | undefined {
  const path = sidecarPath(image)
  const json = readBounded(path, 'sidecar', LIMITS.sidecarBytesMax)
  return json === undefined ? undefined : parseSidecar(json, path)
}

const MADE: Fields = { how: text, by: text, at: time, from: textOrNull }
const BLOCK: Fields = {
  name: text,
  length: pageAligned,
  pageSize: exactly(TARGET_PAGE_BYTES),
  pagesOffset: pageAligned,
  presentPages: count,
  xxh64: digits(),
}
const ofThisVersion: Check = (value) =>
  value === VERSION
    ? undefined
    : `${VERSION} (another farfault wrote it: park again, or move the sidecar away, and pages are served unchecked)`
const SIDECAR: Fields = {
  version: ofThisVersion,
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
  const { value, check, checkSum } = parseFields(json, 'sidecar', path)
  check(value, '', SIDECAR)
  const { sidecarCrc32, ...sidecar } = value as Sidecar & { sidecarCrc32: string }
  check(sidecar.made, 'made', MADE)
  for (const [index, block] of sidecar.blocks.entries()) check(block, `blocks[${index}]`, BLOCK)
  checkSum('sidecarCrc32', sidecar, sidecarCrc32)
  return sidecar
}
