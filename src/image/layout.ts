// What is where in a mapped-ram file: read from its metadata alone, never from page data. Runs wherever an image is opened.

import { ImageError } from '../errors.js'
import { type Bitmap, createBitmap } from '../ram/bitmap.js'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import {
  MAPPED_RAM,
  type MappedRamBlock,
  mappedRamBitmapBytes,
  mappedRamPaddingBit,
  readEmptyRamBody,
  readMappedRamSetup,
} from '../wire/mapped-ram.js'
import type { StreamReader } from '../wire/reader.js'
import type { Configuration } from '../wire/sections.js'
import { asImageErrors, fileReader, type OpenFile, readExactly } from './file.js'
import { readStream, type StreamContent } from './read-stream.js'

export interface ImageLayout extends StreamContent {
  /** Byte offset of the stream in the file. */
  readonly start: number
  readonly blocks: readonly MappedRamBlock[]
}

const TARGET_PAGE_BITS = Math.log2(TARGET_PAGE_BYTES)

/** Read at a time in front of the page regions, bytes: an entry and its header, and little of what follows. */
const ENTRY_STEP_BYTES = 512

/** @throws ImageError with the place for a file that is no mapped-ram file, or a damaged one. */
export function readLayout(file: OpenFile, start = 0): ImageLayout {
  return asImageErrors(file.path, () => {
    let blocks: readonly MappedRamBlock[] = []
    const walk = readStream(fileReader(file, start, ENTRY_STEP_BYTES), file.path, {
      configuration: (configuration, offset) => checkConfiguration(configuration, file.path, offset),
      ramStart(reader: StreamReader) {
        const setup = readMappedRamSetup(reader, (offset) => readerBehindRegion(file, offset))
        blocks = setup.blocks
        return fileReader(file, setup.reader.streamOffset)
      },
      ramBody: readEmptyRamBody,
    })
    for (;;) {
      const step = walk.next()
      if (step.done) return { ...step.value, start, blocks }
    }
  })
}

function readerBehindRegion(file: OpenFile, offset: number): StreamReader {
  if (offset > file.bytes)
    throw new ImageError(
      `the file ends inside page data, which goes to offset ${offset}`,
      file.path,
      file.bytes,
    )
  return fileReader(file, offset, ENTRY_STEP_BYTES)
}

export const isMappedRam = ({ capabilities = [] }: Configuration): boolean =>
  capabilities.includes(MAPPED_RAM)

function checkConfiguration(configuration: Configuration, path: string, offset: number): void {
  const refuse = (what: string): never => {
    throw new ImageError(`configuration section: ${what}`, path, offset)
  }
  if (!isMappedRam(configuration))
    refuse('a saved stream, not an image: it has not the capability mapped-ram')
  const other = configuration.capabilities?.find((name) => name !== MAPPED_RAM)
  if (other !== undefined) refuse(`capability ${other}, which an image cannot have`)
  const { targetPageBits = TARGET_PAGE_BITS } = configuration
  if (targetPageBits !== TARGET_PAGE_BITS)
    refuse(`target pages of 2^${targetPageBits} bytes, expected 2^${TARGET_PAGE_BITS}`)
}

/** @throws ImageError when the bitmap has bits for pages that the block has not. */
export function readPresent(file: OpenFile, block: MappedRamBlock): Bitmap {
  const { name, length, bitmapOffset } = block
  const bytes = new Uint8Array(mappedRamBitmapBytes(length))
  readExactly(file, bytes, bitmapOffset, `the bitmap of block ${name}`)
  const extra = mappedRamPaddingBit(bytes, length)
  if (extra >= 0) {
    const what = `bitmap of block ${name} has bit ${extra}, but the block ${length / TARGET_PAGE_BYTES} pages`
    throw new ImageError(what, file.path, bitmapOffset + (extra >>> 3))
  }
  // Bits in the file are in the order of a little-endian host, which is every host that koffi's callers run on.
  return createBitmap(length / TARGET_PAGE_BYTES, bytes.buffer)
}
