// A guest as the main thread sees it: starts its thread, relays its events, and ends it. Main thread only.

import { EventEmitter } from 'node:events'
import { MessageChannel, type Worker } from 'node:worker_threads'
import { errorFromMessage, GuestError } from '../errors.js'
import { unmap } from '../os/mapping.js'
import { startThread } from '../thread.js'
import type { GuestCheck, GuestRamBlock } from './guest.js'
import {
  CELL,
  DEAD,
  type EngineReply,
  type FirstInstruction,
  type GuestCreation,
  type GuestEvent,
  type GuestThreadData,
  type MainAnswers,
  type MainRequest,
  type Stopped,
} from './guest-messages.js'
import type { GuestConnection } from './guest-remote.js'

/** How long a guest thread may take to end itself before it is terminated. */
const GOODBYE_MS = 200
/** How long Node may take to end a terminated thread before its RAM is left where it is, rather than waited for. */
const JOIN_MS = 10_000

/** Guests that come with the library. */
const BUILT_IN = { v86: './v86.js', pattern: './pattern.js', ram: './ram.js' } as const

export type GuestSpec = {
  /** A built-in guest, or the URL of a module that exports a `GuestModule`. */
  readonly module: URL | keyof typeof BUILT_IN
} & GuestCreation

export interface GuestEvents {
  output: [bytes: Uint8Array]
  failed: [error: Error]
  firstInstruction: [times: FirstInstruction]
}

export interface GuestHandle {
  readonly machine: string
  readonly blocks: readonly GuestRamBlock[]
  /** Let it run; resolves when it does. Not for a guest whose RAM has yet to arrive: the engine runs that. */
  start(): Promise<void>
  stop(): Promise<Stopped>
  /** While stopped and with all RAM present. */
  check(): Promise<GuestCheck>
  /** In the guest's own unit; at most about 50 ms old while it runs. */
  progress(): number
  /** Returns the function that takes the listener away. Nothing comes after `destroy` has been called. */
  on<Name extends keyof GuestEvents>(name: Name, listener: (...args: GuestEvents[Name]) => void): () => void
  /** A new connection, its port to be transferred to the engine thread that is to command the guest. */
  connect(): GuestConnection
  /**
   * Ends the thread and frees the RAM; resolves when it has ended. A guest that stalls on a missing page ends only
   * after the page's range has been unregistered (its RAM stays mapped when that takes over ten seconds). Idempotent.
   */
  destroy(): Promise<void>
  /** The same without a word to the guest: it executes nothing more, however its thread may be let go from a page. */
  kill(): Promise<void>
}

/** Resolves when the guest exists, stopped. Rejects with what its module threw. */
export async function startGuest(spec: GuestSpec): Promise<GuestHandle> {
  const moduleUrl =
    spec.module instanceof URL ? spec.module : new URL(BUILT_IN[spec.module] ?? '', import.meta.url)
  const progress = new Float64Array(new SharedArrayBuffer(8))
  const creation: GuestCreation = 'incoming' in spec ? { incoming: spec.incoming } : { options: spec.options }
  const data: GuestThreadData = { moduleUrl: moduleUrl.href, creation, progress }
  const worker = startThread(new URL('./guest-thread.js', import.meta.url), 'farfault guest', data)
  const events = new EventEmitter<GuestEvents>()
  const thread = guestThread(worker, events)
  const { machine, blocks } = await thread.ready
  return {
    machine,
    blocks,
    start: () => thread.ask('start'),
    stop: () => thread.ask('stop'),
    check: () => thread.ask('check'),
    progress: () => progress[0]!,
    on(name, listener) {
      // EventEmitter's own types do not see through a generic name.
      const untyped = listener as (...args: unknown[]) => void
      ;(events as EventEmitter).on(name, untyped)
      return () => void (events as EventEmitter).off(name, untyped)
    },
    connect: thread.connect,
    destroy: thread.destroy,
    kill: thread.kill,
  }
}

interface GuestThread {
  readonly ready: Promise<Extract<GuestEvent, { event: 'ready' }>>
  ask<Op extends keyof MainAnswers>(op: Op): Promise<MainAnswers[Op]>
  connect(): GuestConnection
  destroy(): Promise<void>
  kill(): Promise<void>
}

function guestThread(worker: Worker, events: EventEmitter<GuestEvents>): GuestThread {
  const ready = deferred<Extract<GuestEvent, { event: 'ready' }>>()
  const ended = deferred<void>()
  const waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>()
  const cells: Int32Array[] = []
  let lastId = 0
  let alive = true
  let destroyed: Promise<void> | undefined
  /** To be unmapped when the thread has ended. */
  let mapped: readonly GuestRamBlock[] = []

  function settle({ id, value, error }: EngineReply): void {
    const asked = waiting.get(id)
    waiting.delete(id)
    if (error === undefined) asked?.resolve(value)
    else asked?.reject(errorFromMessage(error))
  }

  const onEvent = (event: GuestEvent) => {
    switch (event.event) {
      case 'ready':
        if (event.unmapBlocks) mapped = event.blocks
        return ready.resolve(event)
      case 'createFailed':
        ready.reject(errorFromMessage(event.error))
        return void destroy()
      case 'reply':
        return settle(event)
      case 'output':
        return emit('output', event.bytes)
      case 'gone':
        return isGone()
      case 'failed':
        return emit('failed', errorFromMessage(event.error))
      case 'firstInstruction': {
        const { runCalledAt, firstInstructionAt } = event
        return emit('firstInstruction', { runCalledAt, firstInstructionAt })
      }
    }
  }

  function emit<Name extends keyof GuestEvents>(name: Name, ...args: GuestEvents[Name]): void {
    if (destroyed === undefined) (events as EventEmitter).emit(name, ...args)
  }

  /** Nobody waits for a thread that is going or gone. */
  function giveUp(error: Error): void {
    alive = false
    for (const cell of cells) {
      Atomics.store(cell, CELL.reply, DEAD)
      Atomics.notify(cell, CELL.reply)
    }
    ready.reject(error)
    for (const asked of waiting.values()) asked.reject(error)
    waiting.clear()
  }

  function broke(error: Error): void {
    if (!alive) return
    giveUp(error)
    emit('failed', error)
  }

  /** The thread touches no RAM any more. */
  function isGone(): void {
    for (const block of mapped) unmap(block.address, block.length)
    mapped = []
    ended.resolve()
  }

  function destroy(): Promise<void> {
    destroyed ??= (async () => {
      if (alive) worker.postMessage({ op: 'destroy' } satisfies MainRequest)
      giveUp(new GuestError('the guest has been destroyed'))
      const timers = [
        setTimeout(() => void worker.terminate(), GOODBYE_MS),
        setTimeout(ended.resolve, JOIN_MS),
      ]
      await ended.promise
      for (const timer of timers) clearTimeout(timer)
    })()
    return destroyed
  }

  function kill(): Promise<void> {
    void worker.terminate() // takes effect before this returns: what the thread would execute next, it does not
    return destroy()
  }

  // A rejection is for whoever awaits `startGuest`; after that, `failed` tells.
  ready.promise.catch(() => {})
  worker.on('message', onEvent)
  worker.on('error', (cause) => broke(new GuestError(`the guest thread broke: ${cause}`, { cause })))
  worker.on('exit', () => {
    broke(new GuestError('the guest thread ended by itself'))
    isGone()
  })
  return {
    ready: ready.promise,
    ask(op) {
      if (!alive) return Promise.reject(new GuestError('the guest thread has ended'))
      const id = ++lastId
      const { promise, resolve, reject } = deferred<unknown>()
      waiting.set(id, { resolve, reject })
      worker.postMessage({ op, id } satisfies MainRequest)
      return promise as Promise<MainAnswers[typeof op]>
    },
    connect() {
      const { port1, port2 } = new MessageChannel()
      const cell = new Int32Array(new SharedArrayBuffer(CELL.slots * 4))
      cells.push(cell)
      if (!alive) Atomics.store(cell, CELL.reply, DEAD)
      worker.postMessage({ op: 'connect', port: port1, cell } satisfies MainRequest, [port1])
      return { port: port2, cell }
    },
    destroy,
    kill,
  }
}

interface Deferred<T> {
  readonly promise: Promise<T>
  resolve(value: T): void
  reject(error: Error): void
}

function deferred<T>(): Deferred<T> {
  let settle!: Omit<Deferred<T>, 'promise'>
  const promise = new Promise<T>((resolve, reject) => {
    settle = { resolve, reject }
  })
  return { promise, ...settle }
}
