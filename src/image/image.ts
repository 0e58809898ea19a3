// A parked VM in a file: opened, checked, and ready to be served. Opening reads metadata only, so it takes milliseconds
// whatever the size of the RAM. Runs on the thread that opens; the image holds one descriptor and no other state.

import { closeSync, fstatSync } from 'node:fs'
import { ImageError } from '../errors.js'
import type { Bitmap } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Configuration, NamedSection } from '../wire/sections.js'
import {
  CHECKSUM_DIGITS,
  CHUNK_BYTES,
  CHUNK_PAGES,
  checksumBlock,
  checksumDigits,
  checksumOfBytes,
  chunkMask,
  clearAbsent,
  countChunks,
  metadataChecksum,
} from './checksums.js'
import { type OpenFile, openForReading, readExactly } from './file.js'
import { type ImageLayout, readLayout, readPresent } from './layout.js'
import { readSidecar, type Sidecar, sidecarPath } from './sidecar.js'
import type { DeviceSpan } from './split-devices.js'

export interface ImageBlock {
  /** idstr. */
  readonly name: string
  /** Bytes. */
  readonly length: number
  /** Target page, bytes: what a bit of the bitmap stands for. */
  readonly pageSize: number
  /** File offset of page 0; page i is `i * pageSize` behind. */
  readonly pagesOffset: number
  /** Pages that the file has. All others are zero, whatever the file holds in their places. */
  readonly present: Bitmap
}

export interface Image {
  readonly path: string
  readonly fd: number
  readonly fileBytes: number
  /** Machine type: `pc-q35-7.2`. */
  readonly machine: string
  /** As in the file, with the capability `mapped-ram`, which a stream to a QEMU without it must not have. */
  readonly configuration: Configuration
  readonly blocks: readonly ImageBlock[]
  /** Section id of the RAM: no device has it. */
  readonly ramSectionId: number
  /** SECTION_FULL records, verbatim and in order, as a postcopy package takes them. */
  readonly devices: Uint8Array
  readonly sections: readonly DeviceSpan[]
  /** JSON, as QEMU wrote it. */
  readonly vmDescription: Uint8Array | undefined
  readonly sidecar: Sidecar | undefined
  /** Checksum of all that is not page data, hexadecimal: tells images apart. Without a sidecar it is calculated. */
  metadataCrc32(): string
  /**
   * Reads a chunk (64 KiB, or the shorter end of a block) into `bytes`; pages that the file has not are zeros. With `verify` it
   * is compared with its checksum; without a sidecar there is nothing to compare.
   * @throws ImageError with block and offset when it is damaged.
   */
  readChunk(blockIndex: number, chunk: number, bytes: Uint8Array, verify: boolean): void
  /** Whether a chunk, as `readChunk` gives it, has its checksum, or there are none. */
  isRight(blockIndex: number, chunk: number, bytes: Uint8Array): boolean
  /** Compares all of the page data. Yields bytes read. @throws ImageError as `readChunk`. */
  verify(): Generator<number, void>
  /** Idempotent. */
  close(): void
}

export interface OpenImageOptions {
  /** Refuse an image that has no sidecar. QEMU's own images have none. */
  readonly requireSidecar?: boolean
  /** Byte offset of the stream in the file, as in QEMU's `file:vm.img,offset=N`. */
  readonly offset?: number
}

/**
 * Opens and checks everything but page data.
 * @throws ImageError with file and offset for anything that is damaged; UsageError for a path that cannot be opened.
 */
export function openImage(path: string, options: OpenImageOptions = {}): Image {
  const file = openForReading(path, (fd) => fstatSync(fd).size)
  try {
    return imageOf(file, options)
  } catch (error) {
    closeSync(file.fd)
    throw error
  }
}

function imageOf(file: OpenFile, { requireSidecar = false, offset = 0 }: OpenImageOptions): Image {
  const { path, fd } = file
  const layout = readLayout(file, offset)
  const blocks = layout.blocks.map((block) => ({
    name: block.name,
    length: block.length,
    pageSize: TARGET_PAGE_BYTES,
    pagesOffset: block.pagesOffset,
    present: readPresent(file, block),
  }))
  checkSectionIds(layout.ramSection, layout.sections, path)
  const sidecar = readSidecar(path)
  if (sidecar === undefined && requireSidecar)
    throw new ImageError('the sidecar is missing', sidecarPath(path), 0)
  if (sidecar !== undefined) compareSidecar(sidecar, file, layout, blocks)
  const checksums =
    sidecar === undefined ? undefined : blocks.map((block, i) => table(block, sidecar.blocks[i]!.xxh64))
  let open = true
  const compare = (blockIndex: number, chunk: number, got: number): void => {
    const expected = checksums![blockIndex]!(chunk)
    if (got === expected) return
    const { name, pagesOffset } = blocks[blockIndex]!
    const first = chunk * CHUNK_PAGES
    const which = `page data of block ${name}, pages ${first} to ${first + CHUNK_PAGES - 1}`
    const sums = `checksum ${checksumDigits(got)}, expected ${checksumDigits(expected)}`
    throw new ImageError(`${which}: ${sums}`, path, pagesOffset + chunk * CHUNK_BYTES)
  }
  return {
    path,
    fd,
    fileBytes: file.bytes,
    machine: layout.configuration.machine,
    configuration: layout.configuration,
    blocks,
    ramSectionId: layout.ramSection.id,
    devices: layout.devices,
    sections: layout.sections,
    vmDescription: layout.vmDescription,
    sidecar,
    metadataCrc32: () => sidecar?.metadataCrc32 ?? metadataCrc32(file, layout),
    readChunk(blockIndex, chunk, bytes, verify) {
      const { pagesOffset, present } = blocks[blockIndex]!
      readExactly(file, bytes, pagesOffset + chunk * CHUNK_BYTES, 'page data')
      const mask = chunkMask(present, chunk)
      clearAbsent(bytes, mask)
      if (verify && mask !== 0 && checksums !== undefined) compare(blockIndex, chunk, checksumOfBytes(bytes))
    },
    isRight: (blockIndex, chunk, bytes) =>
      checksums === undefined || checksumOfBytes(bytes) === checksums[blockIndex]!(chunk),
    *verify() {
      if (checksums === undefined) return
      for (const [index, block] of blocks.entries())
        yield* checksumBlock(file, block, (chunk, checksum) => compare(index, chunk, checksum))
    },
    close() {
      if (open) closeSync(fd)
      open = false
    },
  }
}

/** Devices and RAM are looked up by the id when the state is loaded. */
function checkSectionIds(ram: NamedSection, sections: readonly DeviceSpan[], path: string): void {
  const ids = new Set([ram.id])
  for (const { id, idstr } of sections) {
    if (ids.has(id))
      throw new ImageError(`device section ${idstr} has the id ${id} of another section`, path, 0)
    ids.add(id)
  }
}

/** Checksum of a chunk, by its number, from the digits of the chunks that have pages. */
function table({ length, present }: ImageBlock, digits: string): (chunk: number) => number {
  const checksums = new Uint32Array(Math.ceil(length / CHUNK_BYTES))
  for (let chunk = 0, at = 0; chunk < checksums.length; chunk++) {
    if (chunkMask(present, chunk) === 0) continue
    checksums[chunk] = Number.parseInt(digits.slice(at, at + CHECKSUM_DIGITS), 16)
    at += CHECKSUM_DIGITS
  }
  return (chunk) => checksums[chunk]!
}

/** @throws ImageError naming the field in which the sidecar is not that of this image. */
function compareSidecar(
  sidecar: Sidecar,
  file: OpenFile,
  layout: ImageLayout,
  blocks: readonly ImageBlock[],
): void {
  const same = (field: string, got: unknown, expected: unknown): void => {
    if (got === expected) return
    const what = `sidecar field ${field}: expected ${expected}, as in the image, got ${got}`
    throw new ImageError(what, sidecarPath(file.path), 0)
  }
  same('fileBytes', sidecar.fileBytes, file.bytes)
  same('machine', sidecar.machine, layout.configuration.machine)
  same('blocks.length', sidecar.blocks.length, blocks.length)
  for (const [index, block] of blocks.entries()) {
    const said = sidecar.blocks[index]!
    const where = `blocks[${index}]`
    same(`${where}.name`, said.name, block.name)
    same(`${where}.length`, said.length, block.length)
    same(`${where}.pagesOffset`, said.pagesOffset, block.pagesOffset)
    same(`${where}.presentPages`, said.presentPages, block.present.count())
    same(`${where}.xxh64 (digits)`, said.xxh64.length, countChunks(block.present) * CHECKSUM_DIGITS)
  }
  const checksum = metadataCrc32(file, layout)
  if (checksum === sidecar.metadataCrc32) return
  const what = `metadata has checksum ${checksum}, expected ${sidecar.metadataCrc32}, as in the sidecar`
  throw new ImageError(what, file.path, layout.start)
}

const metadataCrc32 = (file: OpenFile, { start, blocks }: ImageLayout): string =>
  checksumDigits(metadataChecksum(file, start, blocks))
