// A guest as an engine thread sees it: blocking calls to the guest thread, each with a time limit. Runs on the source
// thread and on the destination thread; `guest-thread.ts` is the other half.

import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads'
import { errorFromMessage, GuestError } from '../errors.js'
import {
  CELL,
  DEAD,
  type EngineAnswers,
  type EngineReply,
  type EngineRequest,
  OUTCOME,
  PERMIT,
  type Stopped,
  type StoppedState,
  UNASKED,
} from './guest-messages.js'

const ANSWER_TIMEOUT_MS = 10_000

/** What `GuestHandle.connect` returns, to be transferred to the engine thread. */
export interface GuestConnection {
  readonly port: MessagePort
  readonly cell: Int32Array
}

/** All calls throw GuestError when the guest thread has ended or does not answer in time. */
export interface GuestRemote {
  /** Idempotent: on a stopped guest it tells when that stopped. */
  stop(): Stopped
  save(): Uint8Array
  /** Both in one round trip, because the guest is down meanwhile. */
  stopAndSave(): StoppedState
  /** Let a stopped guest with all its RAM go on; returns when it does. */
  resume(): void
  /** Hand device state over and return at once; `wakeFd`, an eventfd, is signalled when `loaded` changes. */
  load(devices: Uint8Array, wakeFd: number): void
  /** False while loading; throws what `load` failed with. */
  loaded(): boolean
  /** Let the guest run and return at once. How that goes is told to the main thread. */
  run(): void
  /** From now on `run` does nothing. False when it has let the guest run already. */
  forbidRun(): boolean
  /** Tell the guest's balloon device to hold still, or that it may go on; after what was posted before, not waited for. */
  holdBalloon(hold: boolean): void
}

export function createGuestRemote(
  { port, cell }: GuestConnection,
  timeoutMs: number = ANSWER_TIMEOUT_MS,
): GuestRemote {
  let lastId = UNASKED
  let failure: Error | undefined

  function post(request: EngineRequest): void {
    assertAlive(cell)
    port.postMessage(request)
  }

  function ask<Op extends keyof EngineAnswers>(op: Op): EngineAnswers[Op] {
    const id = ++lastId
    post({ op, id })
    waitForReply(cell, id, op, timeoutMs)
    return takeReply(id) as EngineAnswers[Op]
  }

  /** Answers that came after their time limit are in the port before ours, and are dropped. */
  function takeReply(id: number): unknown {
    for (;;) {
      const received = receiveMessageOnPort(port) as { message: EngineReply } | undefined
      if (received === undefined) throw new GuestError('the guest thread gave no answer')
      const { id: got, value, error } = received.message
      if (got === UNASKED && error !== undefined) failure = errorFromMessage(error)
      if (got !== id) continue
      if (error !== undefined) throw errorFromMessage(error)
      return value
    }
  }

  function loaded(): boolean {
    const reached = Atomics.load(cell, CELL.loaded)
    if (reached === OUTCOME.failed) {
      if (failure === undefined) takeReply(UNASKED)
      throw failure
    }
    if (reached === OUTCOME.pending) assertAlive(cell)
    return reached === OUTCOME.done
  }

  return {
    stop: () => ask('stop'),
    save: () => ask('save'),
    stopAndSave: () => ask('stopAndSave'),
    resume: () => ask('resume'),
    load: (devices, wakeFd) => post({ op: 'load', devices, wakeFd }),
    loaded,
    run: () => post({ op: 'run' }),
    forbidRun: () => Atomics.compareExchange(cell, CELL.permit, PERMIT.open, PERMIT.forbidden) !== PERMIT.ran,
    holdBalloon: (hold) => post({ op: 'holdBalloon', hold }),
  }
}

function waitForReply(cell: Int32Array, id: number, op: string, timeoutMs: number): void {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const seen = Atomics.load(cell, CELL.reply)
    if (seen === id) return
    assertAlive(cell)
    const leftMs = deadline - performance.now()
    if (leftMs <= 0) throw new GuestError(`the guest did not answer "${op}" within ${timeoutMs} ms`)
    Atomics.wait(cell, CELL.reply, seen, leftMs)
  }
}

function assertAlive(cell: Int32Array): void {
  if (Atomics.load(cell, CELL.reply) === DEAD) throw new GuestError('the guest thread has ended')
}
