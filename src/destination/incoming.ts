// One incoming migration, record by record. Destination thread.

import { ChannelError, GuestError, ProtocolError } from '../errors.js'
import { CELL as GUEST_CELL, OUTCOME } from '../guest/guest-messages.js'
import type { GuestRemote } from '../guest/guest-remote.js'
import { LIMITS } from '../limits.js'
import type { Machine } from '../machine.js'
import { monotonicUs } from '../os/clock.js'
import { assertHostCanReceive } from '../os/probe.js'
import type { UserfaultfdOperations } from '../os/userfaultfd.js'
import type { Bitmap } from '../ram/bitmap.js'
import { pageSizeSummary, type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Stats } from '../stats.js'
import { trace } from '../trace.js'
import { encodeDevice, readDeviceBody } from '../wire/device-sections.js'
import { type Command, readCommand, receivedBitmapBytes } from '../wire/messages.js'
import { splitPackage } from '../wire/package.js'
import { readRamSetup } from '../wire/ram-setup.js'
import type { StreamReader } from '../wire/reader.js'
import {
  readConfiguration,
  readFooter,
  readHeader,
  readRecordType,
  readSectionHeader,
} from '../wire/sections.js'
import { splitStopTime } from '../wire/stop-time.js'
import { urgentToken, urgentValue } from '../wire/urgent.js'
import type { RamLoader } from './load.js'
import type { Placer } from './placer.js'
import { discardRange, emptyRam, enableNotify, switchHugePagesOff, unlockMemory } from './prepare.js'
import type { ReturnPath } from './return-path.js'
import type { DESTINATION_STATS } from './shared.js'
import type { INCOMING_STATUS, POSTCOPY_STATE } from './status.js'

/** How long a guest may take to load its device state once everything it could wait for is there, ms. */
const LOAD_TIMEOUT_MS = 30_000

/** What the stream announces before there is a guest. */
export interface Announcement {
  readonly machine: string
  readonly blocks: readonly { readonly name: string; readonly length: number; readonly pageSize: number }[]
  /** Postcopy may follow: RAM is to be watched by a userfaultfd. */
  readonly advised: boolean
}

/** The guest and everything made for it, once it exists. */
export interface Prepared {
  readonly blocks: readonly RamBlock[]
  readonly received: readonly Bitmap[]
  readonly guest: GuestRemote
  readonly guestCell: Int32Array
  readonly userfaultfd: UserfaultfdOperations | undefined
  readonly placer: Placer
  readonly loader: RamLoader
  /** All that has been asked for and has not come is asked for again. */
  askAgain(): void
}

export interface IncomingParts {
  readonly reader: StreamReader
  /** Signalled by the guest when it has loaded its devices, or could not. */
  readonly wakeFd: number
  readonly stats: Stats<(typeof DESTINATION_STATS)[number]>
  readonly status: Machine<typeof INCOMING_STATUS>
  readonly postcopy: Machine<typeof POSTCOPY_STATE>
  /** Present once OPEN_RETURN_PATH has come. */
  openReturnPath(): Pick<ReturnPath, 'send'>
  /** A source of ours would like a second connection, and says this number there first. True: it may come. */
  expectUrgent?(token: number): boolean
  /** The stream has ended: what is on its way over the second connection is waited for, until `whole()`. */
  waitForUrgent?(whole: () => boolean): void
  /** Blocks until the main thread has made the guest. */
  prepare(announcement: Announcement): Prepared
}

export interface Incoming {
  readonly prepared: Prepared | undefined
  readonly returnPath: Pick<ReturnPath, 'send'> | undefined
  /** CLOCK_REALTIME at which the source stopped the guest, µs; undefined when it did not say. */
  readonly stoppedAtUs: number | undefined
  /** The guest has loaded its devices: answer the PING that stands behind them. Idempotent. */
  confirmLoaded(): void
  /** Reads the whole stream. When it returns, RAM is whole and the device state is loaded. */
  run(): void
  /** The same from a record on, on another connection: what `run` could not read to its end. */
  goOn(): void
  /** Locks memory again, if it was locked before ADVISE. */
  relock(): void
}

export function createIncoming(parts: IncomingParts): Incoming {
  const { reader, stats, status, postcopy, wakeFd } = parts
  let machine = ''
  let advised: { pageSizeSummary: number } | undefined
  let relock = (): void => {}
  let returnPath: Pick<ReturnPath, 'send'> | undefined
  let prepared: Prepared | undefined
  let ramSectionId = -1 // none yet
  let stoppedAtUs: number | undefined
  let pongWhenLoaded: number | undefined
  const devices: Uint8Array[] = []
  let deviceBytes = 0

  function refuse(what: string, record: string, got?: string): never {
    throw new ProtocolError(what, {
      offset: reader.streamOffset,
      record,
      ...(got === undefined ? {} : { got }),
    })
  }

  const ready = (record: string): Prepared =>
    prepared ?? refuse('this comes before the list of RAM blocks', record)

  // --- sections -----------------------------------------------------------------------------------------------------

  function startSection(): void {
    const { id, idstr, version } = readSectionHeader(reader, 'SECTION_START')
    if (idstr !== 'ram')
      refuse(`section "${idstr}" cannot be taken: only RAM is received while the guest runs`, idstr)
    if (version !== 4) refuse('unknown version of the RAM section', 'ram', `${version}`)
    if (ramSectionId >= 0) refuse('a second RAM section', 'ram')
    ramSectionId = id
    const { blocks } = readRamSetup(reader, {
      postcopy: advised !== undefined,
      hostPageSize: TARGET_PAGE_BYTES,
    })
    readFooter(reader, id)
    prepared = parts.prepare({ machine, blocks, advised: advised !== undefined })
    prepareRam(prepared)
  }

  function prepareRam({ blocks, userfaultfd }: Prepared): void {
    if (advised !== undefined && pageSizeSummary(blocks) !== advised.pageSizeSummary) {
      refuse('the page sizes of RAM do not match', 'POSTCOPY_ADVISE', `${advised.pageSizeSummary}`)
    }
    if (userfaultfd === undefined) {
      emptyRam(blocks)
      return
    }
    switchHugePagesOff(blocks)
    emptyRam(blocks)
    enableNotify(blocks, userfaultfd)
  }

  function partSection(type: 'SECTION_PART' | 'SECTION_END'): void {
    const { id } = readSectionHeader(reader, type)
    const { loader } = ready(type)
    if (id !== ramSectionId) refuse('a section that was never started', type, `id ${id}`)
    loader.loadBody()
    readFooter(reader, id)
  }

  /** Device state outside of a package: the end of a precopy. Only our own guests' records say how long they are. */
  function fullSection(): void {
    const { id, idstr, version } = readSectionHeader(reader, 'SECTION_FULL')
    if (!postcopy.is('none', 'advise')) refuse('device state after the switch', idstr)
    if (!machine.startsWith('farfault-')) {
      refuse(`device "${idstr}" of a ${machine} cannot be taken outside of a postcopy package`, idstr)
    }
    devices.push(encodeDevice(id, idstr, version, readDeviceBody(reader, idstr)))
    readFooter(reader, id)
    deviceBytes += devices[devices.length - 1]!.length
    if (deviceBytes > LIMITS.packageBytesMax || devices.length > LIMITS.deviceSectionsMax)
      refuse('too much device state', idstr, `${deviceBytes} bytes in ${devices.length} sections`)
  }

  // --- commands -----------------------------------------------------------------------------------------------------

  type Handler<N extends Command['name']> = (command: Extract<Command, { name: N }>) => void
  const handlers: { readonly [N in Command['name']]?: Handler<N> } = {
    OPEN_RETURN_PATH() {
      returnPath ??= parts.openReturnPath()
    },
    PING({ value }) {
      pong(value)
      const token = urgentToken('asked', value)
      if (token !== undefined && parts.expectUrgent?.(token)) pong(urgentValue('welcome', token))
    },
    POSTCOPY_ADVISE({ sizes }) {
      postcopy.step('advise')
      if (sizes === null) refuse('postcopy of dirty bitmaps alone is not supported', 'POSTCOPY_ADVISE')
      if (prepared !== undefined) refuse('ADVISE must come before the list of RAM blocks', 'POSTCOPY_ADVISE')
      if (sizes.targetPageSize !== TARGET_PAGE_BYTES)
        refuse('another target page size', 'POSTCOPY_ADVISE', `${sizes.targetPageSize} bytes`)
      assertHostCanReceive(sizes)
      relock = unlockMemory()
      advised = sizes
    },
    POSTCOPY_RAM_DISCARD({ block: name, ranges }) {
      const { blocks, placer } = ready('POSTCOPY_RAM_DISCARD')
      postcopy.step('discard')
      trace('loadvm_postcopy_ram_handle_discard', name, ranges.length)
      const block = blocks.find((b) => b.name === name)
      if (block === undefined)
        refuse('discard in a RAM block that does not exist', 'POSTCOPY_RAM_DISCARD', name)
      for (const range of ranges) {
        discardRange(block, range, reader.streamOffset)
        placer.discarded(
          block,
          range.start / TARGET_PAGE_BYTES,
          (range.start + range.length) / TARGET_PAGE_BYTES,
        )
        stats.discards++
      }
    },
    PACKAGED({ length }) {
      if (length > LIMITS.packageBytesMax) refuse('the package is too large', 'PACKAGED', `${length} bytes`)
      trace('loadvm_handle_cmd_packaged', length)
      const offset = reader.streamOffset
      const bytes = new Uint8Array(length)
      reader.copyOut(bytes, 'PACKAGED')
      startGuest(bytes, offset)
    },
    SWITCHOVER_START() {},
    RECV_BITMAP({ block: name }) {
      if (!status.is('postcopy-recover')) refuse('there is nothing to recover', 'RECV_BITMAP')
      const { blocks, received } = ready('RECV_BITMAP')
      const block = blocks.find((b) => b.name === name)
      if (block === undefined)
        refuse('the bitmap of a RAM block that does not exist is asked for', 'RECV_BITMAP', name)
      const { words } = received[block.index]!
      const bitmap = new Uint8Array(receivedBitmapBytes(block.pages))
      bitmap.set(new Uint8Array(words.buffer, words.byteOffset, words.byteLength))
      returnPath!.send({ name: 'RECV_BITMAP', block: name, bitmap })
    },
    POSTCOPY_RESUME() {
      if (!status.is('postcopy-recover')) refuse('there is nothing to recover', 'POSTCOPY_RESUME')
      status.step('resume')
      returnPath!.send({ name: 'RESUME_ACK', value: 1 })
      ready('POSTCOPY_RESUME').askAgain()
    },
  }

  function pong(value: number): void {
    if (returnPath === undefined) refuse('PING without a return path', 'PING')
    returnPath.send({ name: 'PONG', value })
  }

  function command(): void {
    const offset = reader.streamOffset
    const message = readCommand(reader)
    trace('loadvm_process_command', message.name, offset)
    const handler = handlers[message.name] as Handler<typeof message.name> | undefined
    if (handler === undefined) refuse(`command ${message.name} is not legal here`, message.name)
    handler(message as never)
  }

  /** LISTEN, the device state, RUN: from here on the guest is this side's. */
  function startGuest(bytes: Uint8Array, offset: number): void {
    stats.packageAtUs = monotonicUs()
    const { guest, placer } = ready('PACKAGED')
    const content = splitPackage(bytes, offset)
    postcopy.step('listen')
    if (returnPath === undefined) refuse('postcopy without a return path', 'PACKAGED')
    status.step('listen')
    placer.enterPostcopy()
    trace('postcopy_balloon_hold', true)
    guest.holdBalloon(true)
    const split = splitStopTime(content.devices)
    stoppedAtUs = split.stoppedAtUs
    // The load may stall on RAM that only this thread can place, so nobody waits for it here: the guest thread says when
    // it is done, and that is passed on as the PONG that stands behind the devices.
    for (const value of content.pings.slice(0, -1)) pong(value)
    pongWhenLoaded = content.pings[content.pings.length - 1]
    guest.load(split.devices, wakeFd)
    guest.run()
    postcopy.step('run')
  }

  // --- the end ------------------------------------------------------------------------------------------------------

  /** QEMU does not look. A page that the source forgot would silently become zeros. */
  function assertRamWhole({ blocks, received, placer }: Prepared): void {
    placer.assertNothingPending(reader.streamOffset)
    for (const block of blocks) {
      const bitmap = received[block.index]!
      const page = bitmap.nextClear(0)
      if (page === block.pages) continue
      refuse(
        `the stream ended, but ${block.pages - bitmap.count()} pages of RAM block "${block.name}" never came`,
        'end of stream',
        `first at offset ${page * TARGET_PAGE_BYTES}`,
      )
    }
  }

  const isWhole = ({ blocks, received }: Prepared): boolean =>
    blocks.every(({ index, pages }) => received[index]!.nextClear(0) === pages)

  function waitUntilLoaded({ guest, guestCell }: Prepared): void {
    const deadline = performance.now() + LOAD_TIMEOUT_MS
    while (!guest.loaded()) {
      if (performance.now() > deadline)
        throw new GuestError(`the guest did not load its devices in ${LOAD_TIMEOUT_MS} ms`)
      Atomics.wait(guestCell, GUEST_CELL.loaded, OUTCOME.pending, 1000)
    }
  }

  function endOfStream(): void {
    const p = ready('end of stream')
    parts.waitForUrgent?.(() => isWhole(p))
    assertRamWhole(p)
    if (postcopy.is('advise'))
      postcopy.step('end') // the source converged, and needed no postcopy
    else if (postcopy.is('running')) postcopy.step('end')
    else if (!postcopy.is('none'))
      refuse(`the stream ended in postcopy state "${postcopy.state()}"`, 'end of stream')
    if (!status.is('postcopy-active')) {
      const split = splitStopTime(Buffer.concat(devices))
      stoppedAtUs = split.stoppedAtUs
      p.guest.load(split.devices, wakeFd)
    }
    waitUntilLoaded(p)
    confirmLoaded()
  }

  function confirmLoaded(): void {
    if (pongWhenLoaded !== undefined) pong(pongWhenLoaded)
    pongWhenLoaded = undefined
  }

  /** Record by record, to the end of the stream. */
  function records(): void {
    for (;;) {
      stats.bytes = reader.streamOffset
      const type = readRecordType(reader)
      if (type === 'COMMAND') command()
      else if (type === 'SECTION_START') startSection()
      else if (type === 'SECTION_PART' || type === 'SECTION_END') partSection(type)
      else if (type === 'SECTION_FULL') fullSection()
      else if (type === 'EOF') {
        stats.bytes = reader.streamOffset
        endOfStream()
        return
      } else refuse('a record that cannot come here', type)
    }
  }

  return {
    get prepared() {
      return prepared
    },
    get returnPath() {
      return returnPath
    },
    get stoppedAtUs() {
      return stoppedAtUs
    },
    relock: () => relock(),
    confirmLoaded,
    run() {
      if (reader.atEnd()) throw new ChannelError('the source closed the connection before it sent anything')
      readHeader(reader)
      status.step('streamOpen')
      machine = readConfiguration(reader).machine
      records()
    },
    goOn: records,
  }
}
