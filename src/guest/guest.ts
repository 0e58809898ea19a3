// What a guest is, to the engine: named blocks of RAM at fixed addresses, and device state that is kept as bytes.
//
// A guest lives on a worker thread of its own (`guest-thread.ts`), because it stalls there whenever it touches
// RAM that has not arrived. A library user implements `GuestModule` in a module of their own and names its URL.

/** One piece of guest RAM. The guest owns the mapping; it must stay where it is for the life of the guest. */
export interface GuestRamBlock {
  /** idstr: the block's name on the wire, at most 255 bytes. Unique in the guest. */
  readonly name: string
  /** Bytes; a multiple of `pageSize`. */
  readonly length: number
  /** Host page size of the mapping: 4096, or the huge page size on hugetlbfs. */
  readonly pageSize: number
  /** Address of the mapping in this process; aligned to `pageSize`. Below 2^53, so a plain number. */
  readonly address: number
  /** What backs the mapping. `shared` mappings are refused as a postcopy destination. */
  readonly backing: 'anonymous' | 'hugetlb' | 'memfd-private' | 'shared'
}

/** Block as it is announced in the stream, before it has a place in this process. */
export interface RamBlockShape {
  readonly name: string
  readonly length: number
  readonly pageSize: number
}

export interface GuestContext {
  /** Bytes the guest wrote to its console (serial port). Delivered to the `output` event of the guest's handle. */
  output(bytes: Uint8Array): void
  /** The guest ended itself or broke; the handle reports it and the engine stops. */
  failed(error: Error): void
}

/** All methods run on the guest thread. */
export interface Guest {
  /**
   * True when the blocks are mappings that the guest has made itself: they outlive its thread, and its handle unmaps them
   * when that has ended. False (default) when they go with the thread, as the memory of a WebAssembly module does.
   */
  readonly unmapBlocks?: boolean
  /** Machine type on the wire, in the configuration section: both ends must agree. */
  readonly machine: string
  readonly blocks: readonly GuestRamBlock[]
  /**
   * Let the guest run. The first thing it does is execute its next instruction; `firstInstruction` is called right
   * after the page of that instruction has been touched, so that downtime is measured to a point where the guest
   * really goes on. Must return without waiting for the guest to end; the guest runs in slices of the event loop.
   */
  run(firstInstruction: () => void): void
  /** Stop at the next slice boundary. When it resolves, no more RAM is touched and nothing is output. */
  stop(): Promise<void>
  /** Device state while stopped: complete SECTION_FULL records with headers and footers (see wire/sections.ts). */
  saveDevices(): Uint8Array
  /** The inverse, on a guest that has not run. May touch RAM, and may stall on it. Throws on bytes it cannot take. */
  loadDevices(sections: Uint8Array): void | Promise<void>
  /**
   * Between a call with true and one with false, RAM must not be given back to the kernel (a balloon device does that).
   * At the source it would change without being noticed; at the destination the page would be absent again, and its only
   * other copy has been sent already. Left out by guests that never do.
   */
  holdBalloon?(hold: boolean): void
  /** While stopped and with all RAM present: does RAM hold what this guest must have written? */
  check(): GuestCheck
  /** Progress in the guest's own unit, for display: passes of the ROM guest, steps of the pattern guest. */
  progress(): number
  /** Give back what else the guest holds (files, sockets). Called once before its thread ends, unless that is killed. */
  dispose?(): void
}

export interface GuestCheck {
  readonly ok: boolean
  /** One line for people: what was checked, or what is wrong and where. */
  readonly detail: string
}

/** What a guest module exports. Options are whatever the user gave; they must survive structured clone. */
export interface GuestModule {
  /** Makes a guest that is stopped. */
  create(options: unknown, context: GuestContext): Promise<Guest>
  /**
   * Options with which `create` makes the guest that an incoming stream announces. Throws GuestError when the machine
   * or the blocks are not this guest's. Such a guest must not touch its RAM before `loadDevices` and `run`.
   */
  incoming(machine: string, blocks: readonly RamBlockShape[]): unknown
}
