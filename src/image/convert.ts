// Makes an image of a plain saved stream: `exec:cat > f`, or `file:` without mapped-ram; of QEMU 7.2, 10.0 and our own.
// Runs on the thread of the caller, and lets its event loop have a turn every few milliseconds.

import { closeSync, fstatSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { CancelledError, ImageError } from '../errors.js'
import type { Command } from '../wire/messages.js'
import { readRamSetup } from '../wire/ram-setup.js'
import type { StreamReader } from '../wire/reader.js'
import type { Configuration } from '../wire/sections.js'
import { type DiscardedPages, discardRanges, noticeArrival, trackDiscarded } from './discarded.js'
import { asImageErrors, fileReader, openForReading } from './file.js'
import { isMappedRam } from './layout.js'
import { createBodyLoader, imageSink } from './load-ram.js'
import { readStream, type StreamContent } from './read-stream.js'
import { createImageWriter, type ImageWriter, type WrittenImage } from './writer.js'

export interface StoreOptions {
  readonly replace?: boolean
  /** Of the stream, for errors. */
  readonly path?: string
  readonly onConfiguration?: (configuration: Configuration) => void
  /** Hears every command of the stream, before anything is done about it. */
  readonly onCommand?: (command: Command, offset: number) => void
  /** See `StreamHandlers`. */
  readonly quiet?: () => boolean
}

/**
 * Stores what `reader` reads as an image, page by page: a generator of stream offsets, between records, which answers the
 * content without RAM. `opened` is given the writer, which the caller finishes or aborts.
 * Errors: `ProtocolError`, `ImageError` for a stream that cannot be stored, and those of the reader and the writer.
 */
export function* storeStream(
  reader: StreamReader,
  output: string,
  opened: (writer: ImageWriter) => void,
  { replace = false, path = 'stream', onConfiguration, onCommand, quiet }: StoreOptions = {},
): Generator<number, StreamContent> {
  let configuration: Configuration | undefined
  let writer: ImageWriter | undefined
  let loadBody: ((reader: StreamReader) => void) | undefined
  let discarded: DiscardedPages | undefined
  let postcopy = false

  function command(command: Command, offset: number): void {
    onCommand?.(command, offset)
    if (command.name === 'POSTCOPY_ADVISE') postcopy = command.sizes !== null
    if (command.name !== 'POSTCOPY_RAM_DISCARD' || writer === undefined) return
    discarded ??= trackDiscarded(writer.blocks)
    discardRanges(writer, discarded, command, offset)
  }

  const content = yield* readStream(reader, path, {
    command,
    ...(quiet === undefined ? {} : { quiet }),
    configuration(announced, offset) {
      onConfiguration?.(announced)
      checkPlain(announced, path, offset)
      configuration = announced
    },
    ramStart(reader, { id }) {
      const { blocks } = readRamSetup(reader, { postcopy })
      writer = createImageWriter(output, { configuration: configuration!, blocks, ramSectionId: id, replace })
      opened(writer)
      const sink = imageSink(writer)
      loadBody = createBodyLoader(
        blocks,
        postcopy ? noticeArrival(sink, (block, page) => discarded?.arrived(block, page)) : sink,
      )
      return reader
    },
    ramBody: (reader) => loadBody!(reader),
  })
  discarded?.assertNone(reader.streamOffset)
  return content
}

function checkPlain(configuration: Configuration, path: string, offset: number): void {
  if (isMappedRam(configuration)) throw new ImageError('this is an image already', path, offset)
  const [capability] = configuration.capabilities ?? []
  if (capability === undefined) return
  const what = `saved with the capability ${capability}: RAM is not in this file`
  throw new ImageError(what, path, offset)
}

export interface ConvertOptions {
  /** Take the place of an image of that name. */
  readonly replace?: boolean
  /** Program and version, for the sidecar. */
  readonly by?: string
  /** Bytes read, of how many. */
  readonly onProgress?: (bytes: number, total: number) => void
  readonly signal?: AbortSignal
}

/** The event loop has a turn at least this often, between records. */
const TURN_MS = 10
const INPUT_STEP_BYTES = 1024 * 1024

/**
 * @throws ImageError with the place in `input` for a stream that is damaged or cannot be stored; UsageError for paths that
 * cannot be used; SystemError when the disk is full; CancelledError. Then nothing is left of the output.
 */
export async function convertStream(
  input: string,
  output: string,
  options: ConvertOptions = {},
): Promise<WrittenImage> {
  const { replace = false, by = 'farfault', onProgress, signal } = options
  const file = openForReading(input, (fd) => fstatSync(fd).size)
  let writer: ImageWriter | undefined
  try {
    const opened = (made: ImageWriter): void => {
      writer = made
    }
    const reader = fileReader(file, 0, INPUT_STEP_BYTES)
    const walk = storeStream(reader, output, opened, { replace, path: input })
    for (let turnEndsMs = performance.now() + TURN_MS; ; ) {
      const step = asImageErrors(input, () => walk.next())
      if (step.done === true) {
        onProgress?.(file.bytes, file.bytes)
        const { devices, vmDescription } = step.value
        const made = { how: 'convert', by, from: input }
        return asImageErrors(input, () => writer!.finish({ devices, vmDescription, made }))
      }
      if (performance.now() < turnEndsMs) continue
      onProgress?.(step.value, file.bytes)
      await nextTurn()
      if (signal?.aborted) throw new CancelledError('conversion cancelled')
      turnEndsMs = performance.now() + TURN_MS
    }
  } finally {
    writer?.abort()
    closeSync(file.fd)
  }
}
