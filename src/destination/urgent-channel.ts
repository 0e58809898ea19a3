// The second connection, for pages that the guest waits for (QEMU's postcopy-preempt): page records and nothing around
// them. A lost packet of the bulk stream does not hold them up. Destination thread; never blocks.
//
// With a source of ours both ends agree on it (wire/urgent.ts), and requests go back over it. A QEMU says nothing: there
// the second one that connects is it, and requests stay on the first connection.

import { ChannelError, ProtocolError } from '../errors.js'
import {
  AGAIN,
  acceptsConnections,
  closeFd,
  readSome,
  shutdownChannel,
  tryAccept,
  tryRead,
} from '../os/channel.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import type { Stats } from '../stats.js'
import { hasWholeRamRecord } from '../wire/ram-stream.js'
import { createStreamReader, type StreamReader } from '../wire/reader.js'
import { urgentHello } from '../wire/urgent.js'
import type { Intake } from './intake.js'
import type { RamLoader } from './load.js'
import type { Placer } from './placer.js'
import type { DESTINATION_STATS } from './shared.js'

const BUFFER_BYTES = 128 * 1024

/** What puts its pages into RAM. */
export interface UrgentLoader {
  readonly loader: RamLoader
  readonly placer: Placer
}

export interface UrgentParts {
  readonly listenFd: number
  readonly intake: Pick<Intake, 'serveUrgent'>
  readonly stats: Pick<Stats<(typeof DESTINATION_STATS)[number]>, 'urgentBytes'>
  /** Before the guest may run here there is nothing to be urgent. */
  isPostcopy(): boolean
  /** Pages of the first connection that are not in RAM yet go there now. */
  flushFirst(): void
  makeLoader(reader: StreamReader, bytes: Uint8Array, address: number): UrgentLoader
  /** It is there. The descriptor is the main thread's to close. `token`: it was agreed on. */
  onOpen(fd: number, token: number | undefined): void
  /** Its source has said that nothing more comes there. */
  onEnd(): void
}

export interface UrgentChannel {
  /** Take who connects next and says `token`; or, without one, who connects next. False when nobody can. */
  expect(token?: number): boolean
  /** Too late to agree on one. True: one has been agreed on, and may still come. */
  settle(): boolean
  /** The connections are lost: forget this one, and what is not placed. */
  abandon(): void
  close(): void
}

export function createUrgentChannel(parts: UrgentParts): UrgentChannel {
  const { intake, listenFd } = parts
  let hello: Uint8Array | undefined
  let token: number | undefined
  let expected = false
  let settled = false
  let fd = -1
  /** It is the source's: who only knocks is closed here. */
  let open = false
  let greeted = 0
  let stop = (): void => {}
  let abandon = (): void => {}

  function accept(): void {
    const accepted = tryAccept(listenFd)
    if (accepted === undefined) return
    fd = accepted
    greeted = 0
    if (hello === undefined) begin()
    else intake.serveUrgent(fd, greet)
  }

  /** Whoever does not know the number is not the source: a scanner, or another migration that came too late. */
  function greet(): void {
    const count = readGreeting()
    if (count === AGAIN) return
    greeted += Math.max(count, 0)
    const isRight = count > 0 && scratch.every((byte, i) => i >= greeted || byte === hello![i])
    if (!isRight) dismiss()
    else if (greeted === hello!.length) begin()
  }

  const buffer = mapAnonymous(BUFFER_BYTES)
  const bytes = viewOf(buffer.address, BUFFER_BYTES)
  const scratch = bytes.subarray(0, urgentHello(0).length)

  function readGreeting(): number {
    try {
      return tryRead(fd, buffer.address + greeted, hello!.length - greeted)
    } catch (error) {
      if (error instanceof ChannelError) return 0
      throw error
    }
  }

  function dismiss(): void {
    closeFd(fd)
    fd = -1
    intake.serveUrgent(listenFd, accept)
  }

  function begin(): void {
    open = true
    const reader = createStreamReader(bytes, (at, max) => readSome(fd, buffer.address + at, max), {
      ended: () => new ChannelError('the connection for requested pages ended'),
    })
    let made: UrgentLoader | undefined
    intake.serveUrgent(fd, () => {
      made ??= parts.makeLoader(reader, bytes, buffer.address)
      if (!take(reader, made)) end()
    })
    stop = () => made?.placer.close()
    abandon = () => made?.placer.abandon()
    parts.onOpen(fd, token)
  }

  /** One read, since there is something to read; then what came whole. False: nothing more comes. */
  function take(reader: StreamReader, { loader, placer }: UrgentLoader): boolean {
    parts.flushFirst()
    reader.need(reader.available + 1, 'ram page record')
    let more = true
    while (more && hasWholeRamRecord(reader)) {
      more = loader.loadRecord()
      if (more && !parts.isPostcopy()) refuseEarly(reader)
    }
    placer.flush()
    parts.stats.urgentBytes = reader.streamOffset
    return more
  }

  function refuseEarly({ streamOffset: offset }: StreamReader): never {
    throw new ProtocolError('a page over the second connection before the switch', {
      ...{ offset, record: 'ram page record' },
    })
  }

  function end(): void {
    intake.serveUrgent(-1, () => {})
    parts.onEnd()
  }

  return {
    settle() {
      settled = true
      return expected
    },
    expect(wanted) {
      if (settled || expected || !acceptsConnections(listenFd)) return false
      expected = true
      token = wanted
      hello = wanted === undefined ? undefined : urgentHello(wanted)
      intake.serveUrgent(listenFd, accept)
      return true
    },
    abandon() {
      intake.serveUrgent(-1, () => {})
      abandon()
      if (open) shutdownChannel(fd)
      else if (fd >= 0) closeFd(fd)
      fd = -1
      open = false
    },
    close() {
      if (!open && fd >= 0) closeFd(fd)
      stop()
      buffer.unmap()
    },
  }
}
