// The working set of an image, `vm.img.workingset.json`: which pages its runs asked for, when, and in which order. Runs on
// the main thread. It only says what to send first: an image is whole without it, and what is wrong with it costs time, no
// more. So it is not forced to disk: its checksum says whether it came there.
//
// A VM that is parked again asks for the same pages as the last time, nearly all: one of an earlier image is as good.

import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { deflateRawSync, inflateRawSync } from 'node:zlib'
import { ImageError, UsageError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { NEAR_PAGES, ORDER_NAMES, ORDERS, type OrderName } from '../order/orders.js'
import type { DemandRecord } from '../order/recorder.js'
import { type ComesAlong, mergeRecord, type WorkingSet } from '../order/working-set.js'
import { type Bitmap, bitmapBytes, createBitmap } from '../ram/bitmap.js'
import { blockOfPage, numberBlocks, type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import {
  type Check,
  checksumOf,
  count,
  digits,
  exactly,
  type Fields,
  type ParsedFields,
  parseFields,
  readBounded,
  text,
  time,
} from './fields.js'
import { onFile } from './file.js'
import type { Image } from './image.js'
import { partialPath } from './publish.js'
import { workingSetPath } from './sidecar.js'

const VERSION = 1

/** How pages went in a run: in one of the orders, or only when they were asked for. */
export type HowServed = OrderName | 'on-demand'

/** A run, as it was seen from the source. */
export interface Run {
  /** ISO 8601, UTC. */
  readonly at: string
  /** Of the source. */
  readonly host: string
  readonly order: HowServed
  /** Pages of the working set that were sent before they were asked for. Whether all were used nobody knows. */
  readonly ahead: number
  /** Pages of the working set that were asked for all the same. */
  readonly late: number
  /** Pages that were asked for, and not in the working set. */
  readonly missed: number
  /** How fast the destination took what was pushed; 0 when nothing was. */
  readonly bytesPerSecond: number
  /** When the device state was loaded, ms after the guest could run; 0 when that is not known. */
  readonly loadedMs: number
  /** It went on until nothing new was asked for; otherwise the guest ended before. */
  readonly settled: boolean
}

export interface WorkingSetBlock {
  /** idstr. */
  readonly name: string
  /** Pages that the image has. All others are zero. */
  readonly present: Bitmap
}

export interface WorkingSetFile extends WorkingSet {
  /** What the image was when it was recorded: length in bytes, and the checksum of its metadata. */
  readonly image: { readonly bytes: number; readonly metadataCrc32: string }
  readonly blocks: readonly WorkingSetBlock[]
  /** The run that recorded last: of those that settled, if any did. */
  readonly recorded: Run
  /** The last run. */
  readonly last: Run
}

/** They lie nowhere: by them pages are numbered. */
export const ramBlocksOf = (blocks: readonly WorkingSetBlock[]): RamBlock[] =>
  numberBlocks(
    blocks.map(({ name, present }) => ({
      ...{ name, length: present.length * TARGET_PAGE_BYTES, pageSize: TARGET_PAGE_BYTES, address: 0 },
    })),
  )

/** Of all pages that a run needed, as far as is known, those that were there in time; undefined when nothing was known before. */
export const hitRate = ({ ahead, late, missed }: Run): number | undefined =>
  ahead + late === 0 ? undefined : ahead / (ahead + late + missed)

const COLUMNS_BYTES = 4 + 4 + 2
const PAGES_MAX = LIMITS.ramBytesMax / TARGET_PAGE_BYTES

export function encodeWorkingSet(set: WorkingSetFile): string {
  const { image, blocks, records, recorded, last, pages, firstUs, seen } = set
  const columns = Buffer.concat(
    [pages, firstUs, seen].map(({ buffer, byteOffset, byteLength }) =>
      Buffer.from(buffer, byteOffset, byteLength),
    ),
  )
  const fields = {
    version: VERSION,
    image,
    blocks: blocks.map(({ name, present }) => ({
      name,
      pages: present.length,
      present: pack(Buffer.from(present.words.buffer, present.words.byteOffset, present.words.byteLength)),
    })),
    records,
    recorded,
    last,
    pages: pages.length,
    columns: pack(columns),
  }
  return `${JSON.stringify({ ...fields, crc32: checksumOf(fields) }, null, 1)}\n`
}

const pack = (bytes: Uint8Array): string => deflateRawSync(bytes).toString('base64')

const object: Check = () => undefined
const base64: Check = (value) =>
  typeof value === 'string' && /^[A-Za-z0-9+/]*={0,2}$/.test(value) ? undefined : 'base64'
const upTo =
  (max: number): Check =>
  (value, where) =>
    count(value, where) ?? ((value as number) <= max ? undefined : `at most ${max}`)
const served: Check = (value) =>
  [...ORDER_NAMES, 'on-demand'].some((name) => name === value) ? undefined : 'an order of pages'

const FILE: Fields = {
  version: exactly(VERSION),
  image: object,
  blocks: (value) =>
    Array.isArray(value) && value.length <= LIMITS.ramBlocksMax ? undefined : 'a list of blocks',
  records: count,
  recorded: object,
  last: object,
  pages: upTo(LIMITS.workingSetPagesMax),
  columns: base64,
  crc32: digits(1),
}
const IMAGE: Fields = { bytes: count, metadataCrc32: digits(1) }
const BLOCK: Fields = { name: text, pages: upTo(PAGES_MAX), present: base64 }
const RUN: Fields = {
  at: time,
  host: text,
  order: served,
  ahead: count,
  late: count,
  missed: count,
  bytesPerSecond: count,
  loadedMs: count,
  settled: (value) => (typeof value === 'boolean' ? undefined : 'true or false'),
}

/** As the JSON has it. */
interface Written {
  readonly image: WorkingSetFile['image']
  readonly blocks: readonly { readonly name: string; readonly pages: number; readonly present: string }[]
  readonly records: number
  readonly recorded: Run
  readonly last: Run
  readonly pages: number
  readonly columns: string
}

/** @throws ImageError naming the field that is not as `encodeWorkingSet` writes it. */
export function parseWorkingSet(json: string, path: string): WorkingSetFile {
  const parsed = parseFields(json, 'working set', path)
  const { check, checkSum } = parsed
  check(parsed.value, '', FILE)
  const { crc32, ...fields } = parsed.value as Written & { readonly crc32: string }
  check(fields.image, 'image', IMAGE)
  check(fields.recorded, 'recorded', RUN)
  check(fields.last, 'last', RUN)
  for (const [index, block] of fields.blocks.entries()) check(block, `blocks[${index}]`, BLOCK)
  checkSum('crc32', fields, crc32)
  const total = fields.blocks.reduce((sum, { pages }) => sum + pages, 0)
  if (total > PAGES_MAX) parsed.refuse('blocks', `at most ${PAGES_MAX} pages in all`, total)
  const { image, blocks, records, recorded, last } = fields
  return {
    ...{ image, records, recorded, last },
    blocks: blocks.map(({ name, pages, present }, i) => {
      const bytes = unpack(present, bitmapBytes(pages), `blocks[${i}].present`, parsed)
      return { name, present: createBitmap(pages, bytes) }
    }),
    ...readColumns(fields, total, parsed),
  }
}

function readColumns({ pages: length, columns }: Written, total: number, parsed: ParsedFields) {
  const bytes = unpack(columns, length * COLUMNS_BYTES, 'columns', parsed)
  const pages = new Uint32Array(bytes, 0, length)
  const firstUs = new Uint32Array(bytes, 4 * length, length)
  const seen = new Uint16Array(bytes, 8 * length, length)
  const known = createBitmap(total)
  for (const [i, page] of pages.entries()) {
    if (page >= total) parsed.refuse('columns', `pages below ${total}`, page)
    if (known.get(page)) parsed.refuse('columns', 'each page once', page)
    known.set(page)
    if (i > 0 && firstUs[i]! < firstUs[i - 1]!) parsed.refuse('columns', 'the order of first use', page)
  }
  return { pages, firstUs, seen }
}

function unpack(packed: string, bytes: number, where: string, { refuse }: ParsedFields): ArrayBuffer {
  let unpacked: Buffer = Buffer.alloc(0)
  try {
    unpacked = inflateRawSync(Buffer.from(packed, 'base64'), { maxOutputLength: Math.max(bytes, 1) })
  } catch (error) {
    refuse(where, `${bytes} bytes, packed`, (error as Error).message)
  }
  if (unpacked.length !== bytes) refuse(where, `${bytes} bytes`, unpacked.length)
  return new Uint8Array(unpacked).buffer
}

/**
 * What a run or several asked for: any working set, or that which lies beside an image. What only came along is not in it.
 * @throws ImageError when it is damaged; UsageError when it is not there
 */
export function readTrace(path: string): WorkingSetFile {
  const file = workingSetBeside(path)
  const set = readSet(file)
  if (set === undefined) throw new UsageError(`there is no ${file}`)
  return askedFor(set)
}

function readSet(file: string): WorkingSetFile | undefined {
  const json = readBounded(file, 'working set', LIMITS.workingSetBytesMax)
  return json === undefined ? undefined : parseWorkingSet(json, file)
}

/** `path`: of an image, or of the working set itself. */
export const workingSetBeside = (path: string): string =>
  existsSync(workingSetPath(path)) ? workingSetPath(path) : path

function askedFor(set: WorkingSetFile): WorkingSetFile {
  const asked = (_: number, i: number): boolean => set.seen[i]! > 0
  const [pages, firstUs] = [set.pages.filter(asked), set.firstUs.filter(asked)]
  return { ...set, pages, firstUs, seen: set.seen.filter((times) => times > 0) }
}

/** What a working set belongs to: taken when the image is opened, and good when the file has been replaced meanwhile. */
export interface ImageIdentity extends Pick<WorkingSetFile, 'image' | 'blocks'> {
  readonly path: string
}

export const identify = (image: Image): ImageIdentity => ({
  path: image.path,
  image: { bytes: image.fileBytes, metadataCrc32: image.metadataCrc32() },
  blocks: image.blocks.map(({ name, present }) => ({ name, present })),
})

/**
 * The working set of this image, or that which an earlier image of the VM has left here, without what only came along: it would
 * grow with each image. Undefined when there is none.
 * @throws ImageError when it is damaged or that of a VM with other RAM
 */
export function readWorkingSet(
  of: ImageIdentity,
  file: string = workingSetPath(of.path),
): WorkingSetFile | undefined {
  const set = readSet(file)
  if (set === undefined) return undefined
  if (shapeOf(set) !== shapeOf(of))
    throw new ImageError('the working set is that of a virtual machine with other RAM', file, 0)
  return isOf(set, of) ? set : askedFor(set)
}

/** Names and lengths of its RAM blocks. */
export const shapeOf = ({ blocks }: Pick<WorkingSetFile, 'blocks'>): string =>
  blocks.map(({ name, present }) => `${name} ${present.length}`).join()

/** Its runs were runs of this image, not of an earlier one. */
export const isOf = (set: WorkingSetFile, { image }: ImageIdentity): boolean =>
  set.image.bytes === image.bytes && set.image.metadataCrc32 === image.metadataCrc32

export interface NewRun {
  readonly record: DemandRecord
  readonly order: HowServed
  /** Add what was asked for; otherwise only what the run says of the working set is kept. */
  readonly keep: boolean
  /** What the run began with. */
  readonly known: WorkingSetFile | undefined
}

export const describeRun = (record: DemandRecord, order: HowServed): Run => ({
  at: new Date().toISOString(),
  host: hostname(),
  order,
  ahead: record.ahead,
  late: record.late,
  missed: record.pages.length - record.late,
  bytesPerSecond: Math.round(record.bytesPerSecond),
  loadedMs: Math.round(record.loadedMs),
  settled: record.settled,
})

/**
 * Merges a run into the file as it is now: other runs of the image may have written it meanwhile. Its name changes at once.
 * Returns what is in it now; undefined when there is none, and the run is not to be kept.
 * @throws SystemError, UsageError when it cannot be written
 */
export function addRun(of: ImageIdentity, run: NewRun): WorkingSetFile | undefined {
  const path = workingSetPath(of.path)
  const before = readable(of) ?? run.known
  const last = describeRun(run.record, run.order)
  const set = run.keep ? mergeRecord(before, run.record, comesAlong(of, run.order)) : before
  if (set === undefined) return undefined
  const merged: WorkingSetFile = {
    image: of.image,
    blocks: of.blocks,
    ...{ pages: set.pages, firstUs: set.firstUs, seen: set.seen, records: set.records },
    recorded: newer(before?.recorded, last, run.keep),
    last,
  }
  const partial = partialPath(path)
  try {
    onFile('write', partial, () => writeFileSync(partial, encodeWorkingSet(merged), { mode: 0o600 }))
    onFile('rename', path, () => renameSync(partial, path))
  } catch (error) {
    rmSync(partial, { force: true })
    throw error
  }
  return merged
}

/** In an order that brings what is around a page: what goes with it at once. */
function comesAlong({ blocks }: ImageIdentity, order: HowServed): ComesAlong | undefined {
  if (order === 'on-demand' || !ORDERS[order].around) return undefined
  const ramBlocks = ramBlocksOf(blocks)
  return (page) => {
    const { firstPage, pages } = blockOfPage(ramBlocks, page)
    const first = page - ((page - firstPage) % NEAR_PAGES)
    return { first, end: Math.min(first + NEAR_PAGES, firstPage + pages) }
  }
}

/** A record that settled is worth more than a later one that did not. */
const newer = (before: Run | undefined, last: Run, kept: boolean): Run =>
  before !== undefined && (!kept || (before.settled && !last.settled)) ? before : last

/** What is damaged, or of another VM, gives way. */
function readable(of: ImageIdentity): WorkingSetFile | undefined {
  try {
    return readWorkingSet(of)
  } catch (error) {
    if (error instanceof ImageError) return undefined
    throw error
  }
}
