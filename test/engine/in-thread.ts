// A destination in the calling thread: the engine's stream step over bytes in memory, real RAM between guard pages, a
// real userfaultfd whose every operation is looked at, and a guest that only takes notes.

import assert from 'node:assert/strict'
import { createBlocktime } from '../../src/destination/blocktime.js'
import { type Announcement, createIncoming, type Prepared } from '../../src/destination/incoming.js'
import { createRamLoader } from '../../src/destination/load.js'
import { createPlacer } from '../../src/destination/placer.js'
import { cleanUpRam } from '../../src/destination/prepare.js'
import { allocatePageMaps, bitmapsOver, CELL, DESTINATION_STATS } from '../../src/destination/shared.js'
import { INCOMING_STATUS, POSTCOPY_STATE } from '../../src/destination/status.js'
import { GuestError } from '../../src/errors.js'
import { CELL as GUEST_CELL } from '../../src/guest/guest-messages.js'
import type { GuestRemote } from '../../src/guest/guest-remote.js'
import { createMachine } from '../../src/machine.js'
import { discard, type Mapping, mapAnonymous, viewOf } from '../../src/os/mapping.js'
import { openUserfaultfd, type Userfaultfd, type UserfaultfdOperations } from '../../src/os/userfaultfd.js'
import { createWake } from '../../src/os/wake.js'
import { numberBlocks, type RamBlock } from '../../src/ram/block.js'
import { createStats, statsBytes } from '../../src/stats.js'
import type { ReturnMessage } from '../../src/wire/messages.js'
import { createStreamReader } from '../../src/wire/reader.js'
import type { BlockShape } from './base-streams.js'
import type { Random } from './random.js'

const CANARY = 0x5c
/** Small, so that records lie across its end often; the smallest that holds the longest command. */
const BUFFER_BYTES = 128 * 1024

export interface Ram {
  readonly shapes: readonly BlockShape[]
  readonly blocks: readonly RamBlock[]
  /** Fails when a byte beside a block has changed. */
  assertUntouchedBeside(): void
  unmap(): void
}

/** Each block in a mapping of its own, with a host page of canaries in front of it and one behind it. */
export function mapGuardedRam(shapes: readonly BlockShape[]): Ram {
  const mappings = shapes.map(({ length, pageSize }) =>
    mapAnonymous(length + 2 * pageSize, pageSize === 4096 ? {} : { pageSize }),
  )
  const blocks = numberBlocks(
    shapes.map((shape, i) => ({ ...shape, address: mappings[i]!.address + shape.pageSize })),
  )
  const guards = blocks.flatMap(({ address, length, pageSize }) => [
    Buffer.from(viewOf(address - pageSize, pageSize).buffer),
    Buffer.from(viewOf(address + length, pageSize).buffer),
  ])
  const pristine = guards.map((guard) => Buffer.alloc(guard.length, CANARY))
  for (const guard of guards) guard.fill(CANARY)
  return {
    shapes,
    blocks,
    assertUntouchedBeside() {
      for (const [i, guard] of guards.entries())
        assert(guard.equals(pristine[i]!), 'written beside a RAM block')
    },
    unmap: () => mappings.forEach((mapping: Mapping) => void mapping.unmap()),
  }
}

export interface Outcome {
  readonly error: unknown
  /** Bytes of the stream that were taken. */
  readonly taken: number
  readonly loaded: readonly Uint8Array[]
  readonly ran: boolean
  readonly sent: readonly ReturnMessage[]
}

export interface InThreadDestination {
  /** Takes a whole stream in, handed over in pieces as `random` likes. Never throws; the outcome tells. */
  receive(stream: Uint8Array, random: Random): Outcome
  /** Operations of the userfaultfd that left the blocks. */
  readonly escapes: readonly string[]
  close(): void
}

/** Refuses addresses outside of the blocks before the kernel could, and keeps note of them. */
function watched(real: UserfaultfdOperations, ram: Ram, escapes: string[]): UserfaultfdOperations {
  function look(call: string, address: number, length: number): void {
    const inside = ram.blocks.some(
      (block) => address >= block.address && address + length <= block.address + block.length,
    )
    if (!inside || length <= 0) escapes.push(`${call} of ${length} bytes at 0x${address.toString(16)}`)
  }
  return {
    ...real,
    get lastBytes() {
      return real.lastBytes
    },
    copy(destination, source, length) {
      look('copy', destination, length)
      return real.copy(destination, source, length)
    },
    zeropage(destination, length) {
      look('zeropage', destination, length)
      return real.zeropage(destination, length)
    },
    register(address, length, mode) {
      look('register', address, length)
      return real.register(address, length, mode)
    },
  }
}

export function createInThreadDestination(ram: Ram): InThreadDestination {
  const buffer = mapAnonymous(BUFFER_BYTES)
  const bytes = viewOf(buffer.address, BUFFER_BYTES)
  const wake = createWake()
  const escapes: string[] = []
  const statsMemory = new SharedArrayBuffer(statsBytes(DESTINATION_STATS))

  function receive(stream: Uint8Array, random: Random): Outcome {
    const cells = new Int32Array(new SharedArrayBuffer(CELL.count * 4))
    const stats = createStats(DESTINATION_STATS, statsMemory)
    const loaded: Uint8Array[] = []
    const sent: ReturnMessage[] = []
    let ran = false
    let userfaultfd: Userfaultfd | undefined
    let at = 0
    const most = random.pick([1 << 10, 1 << 13, 1 << 17, 1 << 17])
    const reader = createStreamReader(bytes, (into, max) => {
      const count = Math.min(max, stream.length - at, 1 + random.integer(most))
      bytes.set(stream.subarray(at, at + count), into)
      at += count
      return count
    })

    const guest = {
      load: (devices: Uint8Array) => void loaded.push(devices.slice()),
      loaded: () => true,
      run: () => {
        ran = true
      },
      forbidRun: () => !ran,
      holdBalloon: () => {},
    } as unknown as GuestRemote

    function prepare({ machine, blocks: shapes, advised }: Announcement): Prepared {
      if (JSON.stringify(shapes) !== JSON.stringify(ram.shapes)) {
        throw new GuestError(`${machine} has other RAM blocks`)
      }
      const { blocks } = ram
      const maps = allocatePageMaps(blocks)
      const received = bitmapsOver(blocks, maps.received)
      const huge = blocks.some((block) => block.ratio > 1)
      userfaultfd = advised ? openUserfaultfd({ features: huge ? ['MISSING_HUGETLBFS'] : [] }) : undefined
      const operations = userfaultfd && watched(userfaultfd, ram, escapes)
      const placer = createPlacer({
        buffer: bytes,
        bufferAddress: buffer.address,
        blocks,
        received,
        requested: bitmapsOver(blocks, maps.requested),
        blocktime: createBlocktime(maps.blocktime),
        stats,
        userfaultfd: operations,
      })
      return {
        blocks,
        received,
        guest,
        guestCell: new Int32Array(new SharedArrayBuffer(GUEST_CELL.slots * 4)),
        userfaultfd: operations,
        placer,
        loader: createRamLoader(reader, blocks, placer),
        askAgain() {},
      }
    }

    const incoming = createIncoming({
      reader,
      wakeFd: wake.fd,
      stats,
      status: createMachine('incoming', INCOMING_STATUS, cells, CELL.status),
      postcopy: createMachine('postcopy', POSTCOPY_STATE, cells, CELL.postcopy),
      openReturnPath: () => ({ send: (message) => void sent.push(message) }),
      prepare,
    })
    createMachine('incoming', INCOMING_STATUS, cells, CELL.status).step('incoming')
    let error: unknown
    try {
      incoming.run()
      if (userfaultfd !== undefined) cleanUpRam(ram.blocks, userfaultfd)
    } catch (thrown) {
      error = thrown
    } finally {
      incoming.prepared?.placer.close()
      userfaultfd?.close()
    }
    return { error, taken: reader.streamOffset, loaded, ran, sent }
  }

  return {
    receive,
    escapes,
    close() {
      for (const { address, length } of ram.blocks) discard(address, length)
      buffer.unmap()
      wake.close()
    },
  }
}
