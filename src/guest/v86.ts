// The v86 guest: a whole emulated PC that runs the ROM guest (rom.ts). Runs on the guest thread.
//
// Its RAM is one block inside v86's WebAssembly memory. An incoming guest is created the same way, ROM and all: the
// program lies in RAM below 1 MiB and travels with it, so what a new machine has there is dropped before it is used.

import { GuestError, UsageError } from '../errors.js'
import { decodeDeviceState, encodeDeviceState } from './device-record.js'
import type { Guest, GuestContext, RamBlockShape } from './guest.js'
import { buildRom, checkRam, type RomRange, romRange } from './rom.js'
import { createV86Machine, type V86Machine } from './v86-machine.js'

const MiB = 1024 * 1024
const MACHINE = 'farfault-v86'
const BLOCK = 'v86.ram'
const PAGE_SIZE = 4096
/** v86 rounds RAM up to this; other sizes are refused rather than changed. */
const MEMORY_GRANULE_BYTES = 128 * 1024
const MEMORY_BYTES_MIN = 2 * MiB
const MEMORY_BYTES_MAX = 2048 * MiB - MEMORY_GRANULE_BYTES
const DEVICE = { idstr: 'v86', version: 1 } as const
/** In front of v86's own state: memory size, start and end of the ROM program's range, each a u32. */
const PREFIX_BYTES = 16

export interface V86Options {
  /** RAM; 128 MiB unless given. A multiple of 128 KiB, from 2 MiB to just under 2 GiB. */
  readonly memoryBytes?: number
  /** Range the ROM program passes over; from 1 MiB to 100 MiB (or the end of RAM) unless given. */
  readonly start?: number
  readonly end?: number
}

export function incoming(machine: string, blocks: readonly RamBlockShape[]): V86Options {
  const [block] = blocks
  if (machine !== MACHINE || blocks.length !== 1 || block?.name !== BLOCK || block.pageSize !== PAGE_SIZE) {
    throw new GuestError(`the incoming guest is a ${machine}, not a ${MACHINE} with one RAM block "${BLOCK}"`)
  }
  return { memoryBytes: block.length }
}

/** Throws UsageError on options that cannot be, GuestError when v86 does not start. */
export async function create(options: unknown, context: GuestContext): Promise<Guest> {
  const { memoryBytes = 128 * MiB, start, end } = (options ?? {}) as V86Options
  if (
    memoryBytes % MEMORY_GRANULE_BYTES !== 0 ||
    memoryBytes < MEMORY_BYTES_MIN ||
    memoryBytes > MEMORY_BYTES_MAX
  ) {
    throw new UsageError(
      `v86 takes RAM in multiples of 128 KiB from 2 MiB to just under 2 GiB, not ${memoryBytes} bytes`,
    )
  }
  const range = romRange(memoryBytes, start, end)
  const serial = serialOutput(context)
  const machine = await createV86Machine({
    memoryBytes,
    firmware: buildRom(range).buffer,
    onSerialByte: serial.add,
  })
  if (machine.ramLength !== memoryBytes) throw new GuestError(`v86 took ${machine.ramLength} bytes of RAM`)
  const guest = v86Guest(machine, range, serial.flush)
  // Compiles the code that runs while the guest is down, and shows at once if it does not work.
  guest.loadDevices(guest.saveDevices())
  return guest
}

function v86Guest(machine: V86Machine, createdRange: RomRange, flushOutput: () => void): Guest {
  let range = createdRange
  const { ramAddress: address, ramLength: length } = machine
  const passes = () => machine.register('esi')
  return {
    machine: MACHINE,
    blocks: [{ name: BLOCK, length, pageSize: PAGE_SIZE, address, backing: 'anonymous' }],
    run(firstInstruction) {
      machine.touchNextInstruction()
      firstInstruction()
      machine.run()
    },
    async stop() {
      machine.stop()
      flushOutput()
    },
    saveDevices() {
      const state = machine.save()
      const bytes = new Uint8Array(PREFIX_BYTES + state.length)
      new Uint32Array(bytes.buffer, 0, 3).set([length, range.start, range.end])
      bytes.set(state, PREFIX_BYTES)
      return encodeDeviceState(DEVICE, bytes)
    },
    loadDevices(sections) {
      // A copy: aligned for the words in front, and v86 looks at the whole buffer behind what it is given.
      const bytes = new Uint8Array(decodeDeviceState(sections, DEVICE))
      if (bytes.length < PREFIX_BYTES) throw new GuestError(`v86 device state of ${bytes.length} bytes`)
      const [memoryBytes, start, end] = new Uint32Array(bytes.buffer, 0, 3)
      if (memoryBytes !== length) {
        throw new GuestError(`device state of a v86 with ${memoryBytes} bytes of RAM; this one has ${length}`)
      }
      range = romRange(length, start, end)
      machine.restore(bytes.slice(PREFIX_BYTES))
    },
    check() {
      const { wrongAt, detail } = checkRam(machine.ram(), range, passes())
      return { ok: wrongAt === undefined, detail }
    },
    progress: passes,
  }
}

/** Joins the bytes of a turn of the event loop: the program may print faster than messages should be sent. */
function serialOutput(context: GuestContext): { add(byte: number): void; flush(): void } {
  const bytes: number[] = []
  const flush = () => {
    if (bytes.length > 0) context.output(Uint8Array.from(bytes.splice(0)))
  }
  return {
    add(byte) {
      if (bytes.push(byte) === 1) setImmediate(flush)
    },
    flush,
  }
}
