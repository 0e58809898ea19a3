// Writes an image: pages straight to their places as they come, everything else at the end. Runs on the thread that
// receives the pages; all calls block. The file has another name until it is whole and on disk.

import { closeSync, fstatSync, fsyncSync, ftruncateSync, openSync, rmSync } from 'node:fs'
import { punchHole } from '../os/mapping.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { concat } from '../wire/bytes.js'
import {
  EMPTY_RAM_BODY,
  encodeMappedRamEntry,
  encodeMappedRamTotal,
  layOutMappedRam,
  MAPPED_RAM,
  mappedRamBitmapBytes,
} from '../wire/mapped-ram.js'
import {
  type Configuration,
  END_OF_STREAM,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionEnd,
  encodeSectionStart,
  encodeVmDescription,
} from '../wire/sections.js'
import { checksumBlock, checksumDigits, chunkMask, metadataChecksum } from './checksums.js'
import { type OpenFile, onFile, writeExactly } from './file.js'
import { assertCanWrite, partialPath, publish, removeRemnants, writeSidecar } from './publish.js'
import { encodeSidecar, type Made, sidecarPath } from './sidecar.js'
import { describeDevices, splitDevices } from './split-devices.js'
import { createStage, eachStaleRun, type PagesInWriting, pagesInWriting, type Stage } from './stage.js'

export interface ImageWriterOptions {
  /** Of the stream that is stored. Its capabilities give way to those of an image. */
  readonly configuration: Configuration
  readonly blocks: readonly { readonly name: string; readonly length: number }[]
  /** Section id of the RAM. Another one is taken when a device has it. */
  readonly ramSectionId: number
  /** Take the place of a file of that name. Default: such a file is an error. */
  readonly replace?: boolean
  /** RAM goes through the page cache, as where the file system cannot do without. */
  readonly pageCache?: boolean
}

export interface FinishOptions {
  /** SECTION_FULL records, in order. */
  readonly devices: Uint8Array
  /** JSON of the stream, if it had one; otherwise a short one is made. */
  readonly vmDescription?: Uint8Array | undefined
  readonly made: Omit<Made, 'at'>
  /** Version of the QEMU that saved the guest. */
  readonly qemu?: string | null
}

export interface WrittenImage {
  readonly path: string
  readonly machine: string
  /** Sum of all RAM blocks, bytes. */
  readonly memoryBytes: number
  readonly fileBytes: number
  /** Space that the file takes on disk, bytes. */
  readonly diskBytes: number
  readonly presentPages: number
}

export interface ImageWriter {
  /** As given, in order: the index of a block here is its number in the calls. */
  readonly blocks: readonly { readonly name: string; readonly length: number }[]
  /** `pages` pages that lie one after the other at index `at` of `bytes`; zero ones become holes. A page may come again. */
  writeRun(blockIndex: number, page: number, bytes: Uint8Array, at: number, pages: number): void
  /** Pages that are zero, or that are discarded and will come again. */
  zeroRun(blockIndex: number, page: number, pages: number): void
  /** Content of a page as it is now: what a delta is applied to. */
  readPage(blockIndex: number, page: number, into: Uint8Array): void
  /**
   * Writes the rest, waits until all is on disk, and gives the image its name, and the sidecar. Closes the writer.
   * @throws ProtocolError for device records that cannot be taken apart, SystemError. `abort` is still to be called then.
   */
  finish(options: FinishOptions): WrittenImage
  /** Removes what was written. Idempotent; nothing after `finish`. */
  abort(): void
}

const RAM_VERSION = 4
const ZERO_PAGE = Buffer.alloc(TARGET_PAGE_BYTES)

/** @throws UsageError when the file exists or its directory cannot be written to. */
export function createImageWriter(path: string, options: ImageWriterOptions): ImageWriter {
  const { configuration, replace = false, pageCache = false } = options
  assertCanWrite(path, replace)
  removeRemnants(path)
  const partial = partialPath(path)
  const fd = onFile('create', partial, () => openSync(partial, 'wx+', 0o600))
  const { capabilities: _, ...plain } = configuration
  const head = concat([encodeHeader(), encodeConfiguration({ ...plain, capabilities: [MAPPED_RAM] })])
  const firstEntry = head.length + ramStart(0).length + encodeMappedRamTotal([]).length
  const layout = layOutMappedRam(firstEntry, options.blocks)
  const blocks = layout.blocks.map(pagesInWriting)
  const memoryBytes = blocks.reduce((sum, { length }) => sum + length, 0)
  const stage = openStage()
  let open = true

  function openStage(): Stage {
    try {
      // A write that makes a file longer waits for those before it.
      onFile('lengthen', partial, () => ftruncateSync(fd, layout.end))
      return createStage(fd, partial, pageCache)
    } catch (error) {
      closeSync(fd)
      rmSync(partial, { force: true })
      throw error
    }
  }

  function writeMetadata(ramId: number, devices: Uint8Array, vmDescription: Uint8Array): number {
    const tail = concat([
      ...[EMPTY_RAM_BODY, encodeFooter(ramId)],
      ...[encodeSectionEnd(ramId), EMPTY_RAM_BODY, encodeFooter(ramId)],
      ...[devices, END_OF_STREAM, encodeVmDescription(vmDescription)],
    ])
    for (const block of blocks) {
      writeExactly(fd, partial, encodeMappedRamEntry(block), block.entryOffset)
      writeExactly(fd, partial, bitmapOf(block), block.bitmapOffset)
    }
    writeExactly(fd, partial, tail, layout.end)
    // The first bytes come last: until then the file does not begin as an image does.
    writeExactly(fd, partial, concat([head, ramStart(ramId), encodeMappedRamTotal(blocks)]), 0)
    return layout.end + tail.length
  }

  function close(): void {
    open = false
    stage.close()
    closeSync(fd)
  }

  return {
    blocks: options.blocks,
    writeRun(blockIndex, page, bytes, at, pages) {
      const block = blocks[blockIndex]!
      for (let i = 0; i < pages; i++) {
        const from = at + i * TARGET_PAGE_BYTES
        if (isZeroPage(bytes, from)) stage.clear(block, page + i, 1)
        else stage.write(block, page + i, bytes, from)
      }
    },
    zeroRun: (blockIndex, page, pages) => stage.clear(blocks[blockIndex]!, page, pages),
    readPage: (blockIndex, page, into) => stage.read(blocks[blockIndex]!, page, into),
    finish({ devices, vmDescription, made, qemu = null }) {
      const { sections } = splitDevices(devices, vmDescription === undefined ? {} : { vmDescription })
      stage.flush()
      for (const block of blocks) eachStaleRun(block, (offset, length) => punchHole(fd, offset, length))
      const ramId = freeId(
        options.ramSectionId,
        sections.map(({ id }) => id),
      )
      const fileBytes = writeMetadata(ramId, devices, vmDescription ?? describeDevices(sections))
      const file: OpenFile = { path: partial, fd, bytes: fileBytes }
      const sidecar = encodeSidecar({
        machine: configuration.machine,
        qemu,
        made: { ...made, at: new Date().toISOString() },
        fileBytes,
        metadataCrc32: checksumDigits(metadataChecksum(file, 0, blocks)),
        blocks: blocks.map((block) => describeBlock(file, block)),
      })
      onFile('fsync', partial, () => fsyncSync(fd))
      const diskBytes = fstatSync(fd).blocks * 512
      writeSidecar(path, sidecar)
      close()
      publish(path)
      return {
        path,
        machine: configuration.machine,
        memoryBytes,
        fileBytes,
        diskBytes,
        presentPages: blocks.reduce((sum, { present }) => sum + present.count(), 0),
      }
    },
    abort() {
      if (!open) return
      close()
      rmSync(partial, { force: true })
      rmSync(partialPath(sidecarPath(path)), { force: true })
    },
  }
}

const ramStart = (id: number): Uint8Array =>
  encodeSectionStart({ id, idstr: 'ram', instance: 0, version: RAM_VERSION })

function freeId(wanted: number, taken: readonly number[]): number {
  return taken.includes(wanted) ? Math.max(...taken) + 1 : wanted
}

/** Most pages that hold anything show it in their first bytes. */
function isZeroPage(bytes: Uint8Array, at: number): boolean {
  if (bytes[at] !== 0 || bytes[at + 1] !== 0) return false
  return ZERO_PAGE.compare(bytes, at, at + TARGET_PAGE_BYTES) === 0
}

function bitmapOf({ present, length }: PagesInWriting): Uint8Array {
  const bytes = new Uint8Array(mappedRamBitmapBytes(length))
  bytes.set(new Uint8Array(present.words.buffer, present.words.byteOffset, present.words.byteLength))
  return bytes
}

function describeBlock(file: OpenFile, block: PagesInWriting) {
  const { name, length, pagesOffset, present, checksums, known } = block
  const fromFile = checksumBlock(
    file,
    block,
    (chunk, checksum) => {
      checksums[chunk] = checksum
    },
    known.get,
  )
  for (const _ of fromFile);
  let digits = ''
  for (let chunk = 0; chunk < checksums.length; chunk++) {
    if (chunkMask(present, chunk) !== 0) digits += checksumDigits(checksums[chunk]!)
  }
  return {
    name,
    length,
    pageSize: TARGET_PAGE_BYTES,
    pagesOffset,
    presentPages: present.count(),
    xxh64: digits,
  }
}
