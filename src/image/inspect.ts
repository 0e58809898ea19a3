// What is in an image or a saved stream, as plain data. Runs on the thread of the caller and blocks it: it reads all of a
// stream, but of an image no page data unless that is to be verified.

import { closeSync, fstatSync } from 'node:fs'
import { ImageError } from '../errors.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { readRamSetup } from '../wire/ram-setup.js'
import { type Configuration, readConfiguration, readHeader } from '../wire/sections.js'
import { asImageErrors, fileReader, type OpenFile, openForReading } from './file.js'
import { type Image, openImage } from './image.js'
import { isMappedRam } from './layout.js'
import { createBodyLoader, type RamBlockShape } from './load-ram.js'
import { readStream } from './read-stream.js'
import { type Made, sidecarPath, workingSetPath } from './sidecar.js'
import type { DeviceSpan } from './split-devices.js'
import {
  hitRate,
  type ImageIdentity,
  identify,
  isOf,
  type Run,
  readWorkingSet,
  type WorkingSetFile,
} from './working-set-file.js'

/** Records of pages in a stream; the same page may have come several times. */
export interface PageRecordCounts {
  readonly page: number
  readonly zero: number
  readonly xbzrle: number
  readonly compressed: number
}

export interface InspectedBlock {
  /** idstr. */
  readonly name: string
  /** Bytes. */
  readonly length: number
  readonly pages: number
  /** Pages with content. In a stream: of which at least one record carries content. */
  readonly presentPages: number
  readonly zeroPages: number
  /** File offset of the page region; of an image. */
  readonly pagesOffset?: number
  /** Of a stream. */
  readonly records?: PageRecordCounts
}

export interface InspectedSection {
  readonly idstr: string
  readonly instance: number
  readonly version: number
  readonly id: number
  /** Of the body. */
  readonly bytes: number
}

export interface InspectedWorkingSet {
  readonly file: string
  readonly pages: number
  /** Runs of adjacent pages. */
  readonly ranges: number
  readonly bytes: number
  /** Records merged. */
  readonly records: number
  /** Pages that every record has, and that only one has. */
  readonly seenInAll: number
  readonly seenOnce: number
  /** Pages that none has: they came along with one that was asked for. */
  readonly cameAlong: number
  /** Its runs were of an image that was here before: of the same VM, as is believed. */
  readonly earlier: boolean
  /** The latest first use, ms after the VM ran. */
  readonly spanMs: number
  readonly recorded: Run
  /** The last run that has been seen, and its share of needed pages that were there in time; null when it needed none. */
  readonly last: Run & { readonly hitRate: number | null }
}

export interface InspectReport {
  readonly file: string
  readonly kind: 'image' | 'stream'
  readonly fileBytes: number
  /** Space on disk. */
  readonly diskBytes: number
  readonly machine: string
  /** 32 hexadecimal digits, or null. */
  readonly uuid: string | null
  readonly capabilities: readonly string[]
  readonly blocks: readonly InspectedBlock[]
  readonly ramSection: { readonly id: number; readonly version: number; readonly sections: number }
  /** Device sections in the order of the file. */
  readonly devices: readonly InspectedSection[]
  readonly deviceBytes: number
  /** Of the JSON at the end; 0 when there is none. */
  readonly vmDescriptionBytes: number
  readonly sidecar: { readonly file: string; readonly made: Made; readonly qemu: string | null } | null
  /** What its runs asked for; null when nothing is known, or it is that of a VM with other RAM. Of an image. */
  readonly workingSet: InspectedWorkingSet | null
  /** Why a working set that is there is of no use. */
  readonly workingSetProblem?: string
  /** Page data compared with its checksums; null when that was not asked for. */
  readonly verified: { readonly bytes: number } | null
}

export interface InspectOptions {
  /** Compare the page data of an image with the checksums of its sidecar. */
  readonly verify?: boolean
  readonly onProgress?: (bytes: number) => void
}

/** @throws ImageError with the place for a file that is damaged or is neither; also for `verify` without checksums. */
export function inspectFile(path: string, options: InspectOptions = {}): InspectReport {
  const file = openForReading(path, (fd) => fstatSync(fd).size)
  try {
    const configuration = asImageErrors(path, () => {
      const reader = fileReader(file, 0, 512)
      readHeader(reader)
      return readConfiguration(reader)
    })
    const base = { file: path, fileBytes: file.bytes, diskBytes: fstatSync(file.fd).blocks * 512 }
    const head = { ...base, ...describeConfiguration(configuration) }
    return isMappedRam(configuration)
      ? { ...head, kind: 'image', ...inspectImage(path, options) }
      : { ...head, kind: 'stream', ...inspectStream(file, options) }
  } finally {
    closeSync(file.fd)
  }
}

function describeConfiguration({ machine, uuid, capabilities = [] }: Configuration) {
  return { machine, capabilities, uuid: uuid === undefined ? null : Buffer.from(uuid).toString('hex') }
}

function inspectImage(path: string, { verify = false, onProgress }: InspectOptions) {
  const image = openImage(path)
  try {
    const { sidecar } = image
    let bytes = 0
    if (verify) {
      if (sidecar === undefined)
        throw new ImageError('no checksums to verify: the sidecar is missing', sidecarPath(path), 0)
      for (const read of image.verify()) {
        bytes += read
        onProgress?.(bytes)
      }
    }
    return {
      blocks: image.blocks.map(({ name, length, present, pagesOffset }) => ({
        ...countPages(name, length, present),
        pagesOffset,
      })),
      ramSection: { id: image.ramSectionId, version: 4, sections: 2 },
      ...describeTail(image),
      sidecar:
        sidecar === undefined ? null : { file: sidecarPath(path), made: sidecar.made, qemu: sidecar.qemu },
      ...inspectWorkingSet(image),
      verified: verify ? { bytes } : null,
    }
  } finally {
    image.close()
  }
}

function inspectWorkingSet(image: Image): Pick<InspectReport, 'workingSet' | 'workingSetProblem'> {
  try {
    const identity = identify(image)
    const set = readWorkingSet(identity)
    return { workingSet: set === undefined ? null : describeWorkingSet(set, identity) }
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return { workingSet: null, workingSetProblem: error.message } // it is no part of the image
  }
}

function describeWorkingSet(set: WorkingSetFile, identity: ImageIdentity): InspectedWorkingSet {
  const { pages, seen, firstUs, records, recorded, last } = set
  const sorted = pages.slice().sort()
  return {
    file: workingSetPath(identity.path),
    pages: pages.length,
    ranges: sorted.filter((page, i) => i === 0 || page !== sorted[i - 1]! + 1).length,
    bytes: pages.length * TARGET_PAGE_BYTES,
    records,
    seenInAll: seen.filter((times) => times === records).length,
    seenOnce: seen.filter((times) => times === 1).length,
    cameAlong: seen.filter((times) => times === 0).length,
    earlier: !isOf(set, identity),
    spanMs: (firstUs.at(-1) ?? 0) / 1000,
    recorded,
    last: { ...last, hitRate: hitRate(last) ?? null },
  }
}

function countPages(name: string, length: number, present: Bitmap) {
  const pages = length / TARGET_PAGE_BYTES
  const presentPages = present.count()
  return { name, length, pages, presentPages, zeroPages: pages - presentPages }
}

interface Tail {
  readonly devices: Uint8Array
  readonly sections: readonly DeviceSpan[]
  readonly vmDescription: Uint8Array | undefined
}

function describeTail({ devices, sections, vmDescription }: Tail) {
  return {
    devices: sections.map(({ idstr, instance, version, id, bodyBytes }) => ({
      idstr,
      instance,
      version,
      id,
      bytes: bodyBytes,
    })),
    deviceBytes: devices.length,
    vmDescriptionBytes: vmDescription?.length ?? 0,
  }
}

function inspectStream(file: OpenFile, { verify = false, onProgress }: InspectOptions) {
  if (verify) throw new ImageError('a saved stream has no checksums to verify', file.path, 0)
  return asImageErrors(file.path, () => {
    let ram: ReturnType<typeof countRecords> | undefined
    let postcopy = false
    let ignoreShared = false
    const walk = readStream(fileReader(file, 0, 1024 * 1024), file.path, {
      configuration({ capabilities = [] }) {
        ignoreShared = capabilities.includes('x-ignore-shared')
      },
      command(command) {
        if (command.name === 'POSTCOPY_ADVISE') postcopy = command.sizes !== null
      },
      ramStart(reader) {
        ram = countRecords(readRamSetup(reader, { postcopy, ignoreShared }).blocks)
        return reader
      },
      ramBody: (reader) => ram!.loadBody(reader),
    })
    for (;;) {
      const step = walk.next()
      if (step.done !== true) {
        onProgress?.(step.value)
        continue
      }
      const { ramSection, ramSections } = step.value
      return {
        blocks: ram!.blocks(),
        ramSection: { id: ramSection.id, version: ramSection.version, sections: ramSections },
        ...describeTail(step.value),
        sidecar: null,
        workingSet: null,
        verified: null,
      }
    }
  })
}

function countRecords(shapes: readonly RamBlockShape[]) {
  const counted = shapes.map(({ length }) => ({
    present: createBitmap(length / TARGET_PAGE_BYTES),
    records: { page: 0, zero: 0, xbzrle: 0, compressed: 0 },
  }))
  const count = (kind: keyof PageRecordCounts) => (block: number, page: number) => {
    const { present, records } = counted[block]!
    records[kind]++
    present.set(page)
  }
  const loadBody = createBodyLoader(shapes, {
    page: count('page'),
    delta: count('xbzrle'),
    compressed: count('compressed'),
    fill(block, page, byte) {
      const { present, records } = counted[block]!
      records.zero++
      if (byte === 0) present.clear(page)
      else present.set(page)
    },
  })
  const blocks = (): InspectedBlock[] =>
    shapes.map(({ name, length }, index) => {
      const { present, records } = counted[index]!
      return { ...countPages(name, length, present), records }
    })
  return { loadBody, blocks }
}
