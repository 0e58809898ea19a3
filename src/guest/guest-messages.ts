// What main, an engine thread and a guest thread say to each other. Types and cell layout only; imported by all three.
//
// An engine thread blocks, so its answers come over a port and a shared cell together: the guest thread posts the
// reply, stores the request's number into the cell and wakes whoever waits on it.

import type { MessagePort } from 'node:worker_threads'
import type { ErrorMessage } from '../errors.js'
import type { GuestCheck, GuestRamBlock, RamBlockShape } from './guest.js'

/** Slots of the cell, an Int32Array over a SharedArrayBuffer. */
export const CELL = {
  /** Number of the request answered last; `DEAD` when the guest thread has ended. */
  reply: 0,
  /** Progress of `load`, one of `OUTCOME`. */
  loaded: 1,
  /** May `run` begin? One of `PERMIT`; whoever swaps it from `open` decides, once and for all. */
  permit: 2,
  slots: 3,
} as const

export const PERMIT = { open: 0, ran: 1, forbidden: 2 } as const

export const DEAD = -1

export const OUTCOME = { pending: 0, done: 1, failed: 2 } as const

/** A moment on both clocks: monotonic is the host's, realtime compares hosts. Microseconds. */
export interface Moment {
  readonly monotonicUs: number
  readonly realtimeUs: number
}

export interface Stopped {
  readonly stoppedAt: Moment
}

/** How a guest went on: when it was told to, and when the page of its next instruction was there. */
export interface FirstInstruction {
  readonly runCalledAt: Moment
  readonly firstInstructionAt: Moment
}

/** Device state as complete SECTION_FULL records, and when the guest had stopped. */
export interface StoppedState extends Stopped {
  readonly devices: Uint8Array
}

/** Requests an engine thread waits for, and what each answers. */
export interface EngineAnswers {
  stop: Stopped
  save: Uint8Array
  stopAndSave: StoppedState
  resume: undefined
}

export type EngineRequest =
  | { readonly op: keyof EngineAnswers; readonly id: number }
  /** Not waited for, because they may stall on RAM that only the engine thread can bring. */
  | { readonly op: 'load'; readonly devices: Uint8Array; readonly wakeFd: number }
  | { readonly op: 'run' }
  | { readonly op: 'holdBalloon'; readonly hold: boolean }

export interface EngineReply {
  readonly id: number
  readonly value?: unknown
  readonly error?: ErrorMessage
}

/** Id of a reply that no request waits for: the error of a failed `load`. */
export const UNASKED = 0

export interface MainAnswers {
  start: undefined
  stop: Stopped
  check: GuestCheck
}

export type MainRequest =
  | { readonly op: keyof MainAnswers; readonly id: number }
  | { readonly op: 'connect'; readonly port: MessagePort; readonly cell: Int32Array }
  | { readonly op: 'destroy' }

export type GuestEvent =
  | {
      readonly event: 'ready'
      readonly machine: string
      readonly blocks: readonly GuestRamBlock[]
      readonly unmapBlocks: boolean
    }
  | { readonly event: 'createFailed' | 'failed'; readonly error: ErrorMessage }
  | { readonly event: 'output'; readonly bytes: Uint8Array }
  /** The last word: from here on the thread touches no RAM. */
  | { readonly event: 'gone' }
  | ({ readonly event: 'firstInstruction' } & FirstInstruction)
  | ({ readonly event: 'reply' } & EngineReply)

/** How the guest is to be made: by the user's options, or after what an incoming stream announces. */
export type GuestCreation =
  | { readonly options?: unknown }
  | { readonly incoming: { readonly machine: string; readonly blocks: readonly RamBlockShape[] } }

export interface GuestThreadData {
  readonly moduleUrl: string
  readonly creation: GuestCreation
  /** One double: the guest's progress, stored now and then. */
  readonly progress: Float64Array
}
