// One v86 PC without disks, screen or keyboard: create, run, stop, save and restore its devices without its RAM.
// Runs on the guest thread.
//
// v86 saves and restores a machine with all of its RAM inside. A migration moves RAM by itself, so this file reaches
// below v86's public interface and leaves RAM out; it also works round two faults of v86 0.5.462, named where they
// are. All that is relied upon is listed in `PRIVATE_PARTS` and tried out once at each start.

import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { GuestError } from '../errors.js'
import { addressOf } from '../os/memory.js'

const require = createRequire(import.meta.url)
/** Below 1 MiB v86 silently takes 8 MiB. */
const VGA_MEMORY_BYTES = 1024 * 1024
const PAGE_BYTES = 4096
/** Bit of CR0. */
const PAGING = 0x80000000 | 0

/** The part of the WebAssembly API used here; it is not among Node's types. */
declare const WebAssembly: {
  compile(bytes: Uint8Array): Promise<WasmModule>
  instantiate(module: WasmModule, imports: object): Promise<{ readonly exports: object }>
}
type WasmModule = { readonly __brand: 'WebAssembly.Module' }

interface PciDevices {
  readonly devices: readonly ({ readonly pci_bars: readonly unknown[] } | undefined)[]
  /** PCI configuration spaces as 32-bit words. */
  readonly device_spaces: readonly (Int32Array | undefined)[]
}

interface Cpu {
  readonly wasm_memory: { readonly buffer: ArrayBuffer }
  readonly mem8: Uint8Array
  /** eax ecx edx ebx esp ebp esi edi */
  readonly reg32: Int32Array
  /** Linear address of the next instruction. */
  readonly instruction_pointer: Int32Array
  readonly cr: Int32Array
  last_result: Int32Array
  fpu_status_word: Uint16Array
  mxcsr: Int32Array
  devices: Record<string, unknown> & { readonly pci: PciDevices }
  pack_memory(): { packed_memory: Uint8Array; bitmap: { get_buffer(): ArrayBuffer } }
  unpack_memory(): void
}

interface Emulator {
  readonly cpu: Cpu
  run(): void
  stop(): void
  /** One slice if running; takes note of `stop`. */
  do_tick(): void
  readonly running: boolean
  save_state(): ArrayBuffer
  restore_state(state: Uint8Array): void
}

interface Starter {
  readonly v86: Emulator
  add_listener(event: string, listener: (value: number) => void): void
}

export interface V86Machine {
  /** Guest RAM; take it anew for each use, because v86's memory may grow and detach older views. */
  ram(): Uint8Array
  readonly ramAddress: number
  readonly ramLength: number
  register(name: 'esi' | 'edi'): number
  /** Touch RAM where the next instruction lies, so that running on starts with it in place. */
  touchNextInstruction(): void
  run(): void
  /** Stops at once: between two events of the thread the machine is always between two slices. */
  stop(): void
  /** Everything but RAM, in v86's own format, version 6. */
  save(): Uint8Array
  restore(state: Uint8Array): void
}

export interface V86MachineOptions {
  readonly memoryBytes: number
  readonly firmware: ArrayBuffer
  readonly onSerialByte: (byte: number) => void
}

/**
 * Devices whose state is left out. They carry the big buffers (video memory, disk sectors, sound, network: 3 MB), and
 * a machine with neither disk, screen nor network has them as a fresh machine has them.
 */
const LEFT_OUT = { vga: undefined, ide: {}, sb16: undefined, net: undefined } as const

/** Typed arrays over fixed places in the emulator's memory that v86's restore replaces instead of filling. */
const VIEWS_LOST_BY_RESTORE = ['last_result', 'fpu_status_word', 'mxcsr'] as const

export async function createV86Machine(options: V86MachineOptions): Promise<V86Machine> {
  const emulator = await boot(options)
  const { cpu } = emulator
  requirePrivateParts(emulator)
  leaveOutRam(cpu)
  clearAbsentBars(cpu.devices.pci)
  const save = () => withoutLeftOut(cpu, () => new Uint8Array(emulator.save_state()))
  const restore = restorer(emulator)
  tryRestore(cpu, save, restore)

  const ramLength = cpu.mem8.length
  const ram = () => new Uint8Array(cpu.wasm_memory.buffer, cpu.mem8.byteOffset, ramLength)
  const ramAddress = addressOf(ram())
  const assertInPlace = () => {
    if (addressOf(ram()) !== ramAddress) throw new GuestError('v86 moved its RAM in the host')
  }
  return {
    ram,
    ramAddress,
    ramLength,
    register: (name) => cpu.reg32[name === 'esi' ? 6 : 7]! >>> 0,
    touchNextInstruction() {
      const linear = cpu.instruction_pointer[0]! >>> 0
      // With paging on, the page would have to be looked up in tables that may not have arrived; v86 does that itself.
      if ((cpu.cr[0]! & PAGING) === 0 && linear < ramLength) Atomics.load(ram(), linear)
    },
    run() {
      assertInPlace()
      emulator.run()
    },
    stop() {
      emulator.stop()
      emulator.do_tick()
      if (emulator.running) throw new GuestError('v86 did not stop')
      assertInPlace()
    },
    save,
    restore,
  }
}

async function boot(options: V86MachineOptions): Promise<Emulator> {
  const [{ V86 }, code] = await Promise.all([import('v86'), compiledWasm()])
  return new Promise((resolve, reject) => {
    const starter = new V86({
      // Our own instantiation: from a module compiled once, and with an error that reaches the caller.
      wasm_fn: async (imports: object) => {
        const instance = await WebAssembly.instantiate(code, imports).catch(reject)
        return instance?.exports ?? new Promise(() => {})
      },
      memory_size: options.memoryBytes,
      vga_memory_size: VGA_MEMORY_BYTES,
      bios: { buffer: options.firmware },
      autostart: false,
      disable_keyboard: true,
      disable_mouse: true,
      disable_speaker: true,
      log_level: 0,
    } as ConstructorParameters<typeof V86>[0]) as unknown as Starter
    starter.add_listener('serial0-output-byte', options.onSerialByte)
    starter.add_listener('emulator-loaded', () => resolve(starter.v86))
  })
}

let wasm: Promise<WasmModule> | undefined

function compiledWasm(): Promise<WasmModule> {
  wasm ??= readFile(require.resolve('v86/build/v86.wasm')).then((bytes) => WebAssembly.compile(bytes))
  return wasm
}

/** What is used of v86 beyond its documented interface, by path below the emulator object. */
const PRIVATE_PARTS: Readonly<Record<string, 'function' | 'typed array' | 'object' | 'boolean'>> = {
  do_tick: 'function',
  running: 'boolean',
  save_state: 'function',
  restore_state: 'function',
  'cpu.wasm_memory': 'object',
  'cpu.mem8': 'typed array',
  'cpu.reg32': 'typed array',
  'cpu.instruction_pointer': 'typed array',
  'cpu.cr': 'typed array',
  'cpu.last_result': 'typed array',
  'cpu.fpu_status_word': 'typed array',
  'cpu.mxcsr': 'typed array',
  'cpu.pack_memory': 'function',
  'cpu.unpack_memory': 'function',
  'cpu.devices.pci.devices': 'object',
  'cpu.devices.pci.device_spaces': 'object',
  ...Object.fromEntries(Object.keys(LEFT_OUT).map((name) => [`cpu.devices.${name}`, 'object' as const])),
}

function requirePrivateParts(emulator: Emulator): void {
  for (const [path, kind] of Object.entries(PRIVATE_PARTS)) {
    const found = path.split('.').reduce<unknown>((o, key) => (o as Record<string, unknown>)?.[key], emulator)
    const fits = kind === 'typed array' ? (found as Uint8Array)?.BYTES_PER_ELEMENT > 0 : typeof found === kind
    if (!fits || found === null) throw unexpected(`emulator.${path} is not a ${kind}`)
  }
}

function unexpected(what: string): GuestError {
  const { version } = require('v86/package.json') as { version: string }
  return new GuestError(`v86 ${version} differs inside from 0.5.462, for which this was written: ${what}`)
}

function leaveOutRam(cpu: Cpu): void {
  const nothing = { packed_memory: new Uint8Array(0), bitmap: { get_buffer: () => new ArrayBuffer(0) } }
  cpu.pack_memory = () => nothing
  // v86's own would first fill all RAM with zeros, and so populate every page that has yet to arrive.
  cpu.unpack_memory = () => {}
}

/** Do `work` on a machine that seems to have only the other devices. v86 expects the IDE controller to be there. */
function withoutLeftOut<T>(cpu: Cpu, work: () => T): T {
  const all = cpu.devices
  cpu.devices = { ...all, ...LEFT_OUT }
  try {
    return work()
  } finally {
    cpu.devices = all
  }
}

/**
 * v86 fault: restore throws on a base address register that has its I/O bit set but no device behind it, as an IDE
 * channel without a disk has until firmware clears it.
 */
function clearAbsentBars(pci: PciDevices): void {
  pci.devices.forEach((device, id) => {
    const words = pci.device_spaces[id]
    if (device === undefined || words === undefined) return
    for (let bar = 0; bar < device.pci_bars.length; bar++) {
      if (device.pci_bars[bar] === undefined) words[4 + bar] = 0
    }
  })
}

/**
 * v86 fault: restore assigns new arrays to three properties of the CPU that are views of the emulator's memory, so the
 * values (among them the operand of lazily computed EFLAGS) never arrive. Put the values in and the views back.
 */
function restorer(emulator: Emulator): (state: Uint8Array) => void {
  const { cpu } = emulator
  const views = VIEWS_LOST_BY_RESTORE.map((name) => [name, cpu[name]] as const)
  return (state) => {
    try {
      withoutLeftOut(cpu, () => emulator.restore_state(state))
    } catch (cause) {
      throw new GuestError('v86 does not take this device state', { cause })
    }
    for (const [name, view] of views) {
      view[0] = cpu[name][0]!
      Object.assign(cpu, { [name]: view })
    }
  }
}

/** Save, change, restore, compare: shows that the above holds for this v86, and warms the code up for the real one. */
function tryRestore(cpu: Cpu, save: () => Uint8Array, restore: (state: Uint8Array) => void): void {
  const before = VIEWS_LOST_BY_RESTORE.map((name) => cpu[name][0]!)
  const edi = cpu.reg32[7]!
  for (const name of VIEWS_LOST_BY_RESTORE) cpu[name][0] = 0x1234
  cpu.reg32[7] = 0x5678
  const state = save()
  for (const name of VIEWS_LOST_BY_RESTORE) cpu[name][0] = 0
  cpu.reg32[7] = 0
  restore(state)
  const memory = cpu.wasm_memory.buffer
  for (const name of VIEWS_LOST_BY_RESTORE) {
    const inside = new DataView(memory, cpu[name].byteOffset).getUint16(0, true)
    if (inside !== 0x1234) throw unexpected(`cpu.${name} is not restored`)
  }
  if (cpu.reg32[7] !== 0x5678) throw unexpected('cpu.reg32 is not restored')
  if (state.length > cpu.mem8.length / 4 || state.length < PAGE_BYTES) {
    throw unexpected(`its state without RAM has ${state.length} bytes`)
  }
  VIEWS_LOST_BY_RESTORE.forEach((name, i) => {
    cpu[name][0] = before[i]!
  })
  cpu.reg32[7] = edi
}
