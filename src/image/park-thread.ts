// The park thread: accepts a source, and turns its stream into an image. Blocks in accept, in read, and in writing the file.
//
// The source lets go of its guest only when it hears SHUT(0), and that is said when the image has its name and is on disk.
// Whatever fails before is SHUT(1): the image does not exist, and the guest goes on at the source.

import { parentPort, workerData } from 'node:worker_threads'
import { ChannelError, type ErrorMessage, errorToMessage, messageOf, ProtocolError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { acceptOn, shutdownChannel } from '../os/channel.js'
import { monotonicUs } from '../os/clock.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { createStats } from '../stats.js'
import { sayEnded } from '../thread.js'
import { trace } from '../trace.js'
import type { Command } from '../wire/messages.js'
import { createStreamReader, type StreamReader } from '../wire/reader.js'
import { storeStream } from './convert.js'
import { createParkChannel, type ParkChannel } from './park-channel.js'
import { PARK_STATS, type ParkReport } from './park-report.js'
import { removeImage } from './publish.js'
import type { ImageWriter, WrittenImage } from './writer.js'

export interface ParkThreadData {
  readonly listenFd: number
  /** More than one may connect there: it is not a connection that was handed in. */
  readonly listens: boolean
  readonly wakeFd: number
  readonly statsMemory: SharedArrayBuffer
  readonly path: string
  readonly replace: boolean
  /** For the sidecar: program and version, and the address. */
  readonly by: string
  readonly from: string
  readonly qemu: string | null
}

export type ParkThreadMessage =
  | { readonly ready: true }
  | { readonly connected: number }
  | { readonly done: ParkReport; readonly error?: ErrorMessage }

/** How long a source may be silent behind what may be the end, ms: then it was the end. */
const QUIET_MS = 500
/** How long it may take to close the connection when it has its answer, ms. */
const DRAIN_MS = 5000

const data = workerData as ParkThreadData
const tell = (message: ParkThreadMessage): void => parentPort!.postMessage(message)
const stats = createStats(PARK_STATS, data.statsMemory)

interface Progress {
  machine: string
  mode: ParkReport['mode']
  returnPath: boolean
  writer: ImageWriter | undefined
  written: WrittenImage | undefined
}

const p: Progress = { machine: '', mode: 'none', returnPath: false, writer: undefined, written: undefined }

function park(fd: number): void {
  const channel = createParkChannel({
    fd,
    wakeFd: data.wakeFd,
    listenFd: data.listens ? data.listenFd : -1,
  })
  const buffer = mapAnonymous(LIMITS.receiveBufferBytes)
  const reader = createStreamReader(viewOf(buffer.address, buffer.length), (at, max) =>
    channel.read(buffer.address + at, max),
  )
  try {
    p.written = store(reader, channel)
  } catch (error) {
    p.writer?.abort()
    if (p.returnPath) answer(channel, 1)
    throw error
  } finally {
    buffer.unmap()
    channel.close()
  }
}

function store(reader: StreamReader, channel: ParkChannel): WrittenImage {
  let postcopy = false
  const opened = (writer: ImageWriter): void => {
    p.writer = writer
    stats.memoryBytes = writer.blocks.reduce((sum, { length }) => sum + length, 0)
  }
  const walk = storeStream(reader, data.path, opened, {
    replace: data.replace,
    onConfiguration: ({ machine }) => {
      p.machine = machine
    },
    onCommand(command, offset) {
      postcopy ||= command.name === 'POSTCOPY_RAM_DISCARD'
      obey(command, offset, channel)
    },
    quiet: () => p.returnPath && channel.quiet(QUIET_MS),
  })
  for (;;) {
    const step = walk.next()
    stats.bytes = step.done ? reader.streamOffset : step.value
    if (!step.done) continue
    channel.refuseOthers()
    stats.storingAtUs = monotonicUs()
    const { devices, vmDescription } = step.value
    const made = { how: 'park', by: data.by, from: data.from }
    const written = p.writer!.finish({ devices, vmDescription, made, qemu: data.qemu })
    if (p.returnPath) letGo(channel)
    p.mode = postcopy ? 'postcopy' : 'precopy'
    return written
  }
}

/** Commands that change nothing here are passed over; others must not come. */
function obey(command: Command, offset: number, channel: ParkChannel): void {
  trace('loadvm_process_command', command.name, offset)
  switch (command.name) {
    case 'OPEN_RETURN_PATH':
      p.returnPath = true
      return
    case 'PING':
      if (!p.returnPath)
        throw new ProtocolError('PING without a return path', { offset, record: command.name })
      channel.send({ name: 'PONG', value: command.value })
      return
    case 'POSTCOPY_ADVISE':
    case 'POSTCOPY_RAM_DISCARD':
    case 'SWITCHOVER_START':
      return
    default:
      throw new ProtocolError(`command ${command.name} cannot be taken`, { offset, record: command.name })
  }
}

/** A source that has gone without an answer keeps its guest, and a guest must not be in two places. */
function letGo(channel: ParkChannel): void {
  if (!answer(channel, 0)) {
    removeImage(data.path)
    throw new ChannelError('the source has closed the connection before the image was complete')
  }
  channel.drain(DRAIN_MS)
}

/** False when the source has gone: then it knows. */
function answer(channel: ParkChannel, value: number): boolean {
  try {
    channel.send({ name: 'SHUT', value })
    return true
  } catch {
    return false
  }
}

function report(error?: unknown): ParkReport {
  const { machine, mode, returnPath, written } = p
  const pages = stats.memoryBytes / 4096
  const normal = written?.presentPages ?? 0
  return {
    ok: error === undefined,
    ...(error === undefined ? {} : { error: messageOf(error) }),
    machine,
    mode,
    returnPath,
    memoryBytes: stats.memoryBytes,
    bytes: stats.bytes,
    fileBytes: written?.fileBytes ?? 0,
    diskBytes: written?.diskBytes ?? 0,
    pages: { normal, zero: written === undefined ? 0 : pages - normal },
    durationMs: stats.connectedAtUs === 0 ? 0 : (monotonicUs() - stats.connectedAtUs) / 1000,
  }
}

let fd = -1
try {
  tell({ ready: true })
  const accepted = acceptOn(data.listenFd, data.wakeFd)
  if (accepted !== 'woken') {
    fd = accepted
    stats.connectedAtUs = monotonicUs()
    tell({ connected: fd })
    park(fd)
    tell({ done: report() })
  }
} catch (error) {
  tell({ done: report(error), error: errorToMessage(error) })
} finally {
  // The main thread closes it: it may be about to shut it down, and must not meet another file's number.
  if (fd >= 0) shutdownChannel(fd)
  sayEnded()
}
