// Entry of the guest thread: imports a guest module, makes its guest, and serves main and one engine thread at a time.
//
// This thread stalls whenever the guest touches RAM that has not arrived. So nobody may wait for it on the way to
// bringing RAM: `load` reports through the cell and a wake descriptor, `run` to the main thread, instead of being waited for.

import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { errorToMessage } from '../errors.js'
import { monotonicUs, realtimeUs } from '../os/clock.js'
import { wakeFromFd } from '../os/wake.js'
import type { Guest, GuestContext, GuestModule } from './guest.js'
import {
  CELL,
  type EngineAnswers,
  type EngineReply,
  type EngineRequest,
  type GuestEvent,
  type GuestThreadData,
  type MainAnswers,
  type MainRequest,
  type Moment,
  OUTCOME,
  PERMIT,
  type Stopped,
  UNASKED,
} from './guest-messages.js'

const PROGRESS_INTERVAL_MS = 50
const main = parentPort!
const { moduleUrl, creation, progress } = workerData as GuestThreadData

function tell(event: GuestEvent): void {
  main.postMessage(event)
}

function now(): Moment {
  return { monotonicUs: monotonicUs(), realtimeUs: realtimeUs() }
}

async function createGuest(): Promise<Guest> {
  const context: GuestContext = {
    output: (bytes) => tell({ event: 'output', bytes }),
    failed: (error) => tell({ event: 'failed', error: errorToMessage(error) }),
  }
  const module = (await import(moduleUrl)) as GuestModule
  const options =
    'incoming' in creation
      ? module.incoming(creation.incoming.machine, creation.incoming.blocks)
      : creation.options
  return module.create(options, context)
}

function serve(guest: Guest): void {
  let running = false
  let stopped: Stopped = { stoppedAt: now() }
  const storeProgress = () => {
    progress[0] = guest.progress()
  }

  function run(firstInstruction: () => void): void {
    if (running) return
    running = true
    const runCalledAt = now()
    guest.run(() => {
      const firstInstructionAt = now()
      firstInstruction()
      tell({ event: 'firstInstruction', runCalledAt, firstInstructionAt })
    })
  }

  async function stop(): Promise<Stopped> {
    if (!running) return stopped
    await guest.stop()
    running = false
    stopped = { stoppedAt: now() }
    storeProgress()
    return stopped
  }

  const engineOps: { [Op in keyof EngineAnswers]: () => EngineAnswers[Op] | Promise<EngineAnswers[Op]> } = {
    stop,
    save: () => guest.saveDevices(),
    stopAndSave: async () => ({ ...(await stop()), devices: guest.saveDevices() }),
    resume: () => void run(() => {}),
  }
  const mainOps: { [Op in keyof MainAnswers]: () => MainAnswers[Op] | Promise<MainAnswers[Op]> } = {
    start: () => void run(() => {}),
    stop,
    check: () => guest.check(),
  }

  function connect(port: MessagePort, cell: Int32Array): void {
    const reportLoaded = (outcome: number, wakeFd: number) => {
      Atomics.store(cell, CELL.loaded, outcome)
      Atomics.notify(cell, CELL.loaded)
      wakeFromFd(wakeFd).signal()
    }
    const load = async (devices: Uint8Array, wakeFd: number): Promise<void> => {
      try {
        await guest.loadDevices(devices)
        reportLoaded(OUTCOME.done, wakeFd)
      } catch (error) {
        const plain = errorToMessage(error)
        port.postMessage({ id: UNASKED, error: plain } satisfies EngineReply)
        reportLoaded(OUTCOME.failed, wakeFd)
        tell({ event: 'failed', error: plain })
      }
    }
    const permitted = (): boolean =>
      Atomics.compareExchange(cell, CELL.permit, PERMIT.open, PERMIT.ran) !== PERMIT.forbidden
    const handle = async (request: EngineRequest): Promise<void> => {
      switch (request.op) {
        case 'load':
          return load(request.devices, request.wakeFd)
        case 'run':
          if (Atomics.load(cell, CELL.loaded) === OUTCOME.failed || !permitted()) return
          try {
            return run(() => {})
          } catch (error) {
            return tell({ event: 'failed', error: errorToMessage(error) })
          }
        case 'holdBalloon':
          return guest.holdBalloon?.(request.hold)
        default: {
          port.postMessage(await answer(request.id, engineOps[request.op]))
          Atomics.store(cell, CELL.reply, request.id)
          Atomics.notify(cell, CELL.reply)
        }
      }
    }
    // One at a time and in order: a guest must not run before its devices are loaded.
    let turn = Promise.resolve()
    port.on('message', (request: EngineRequest) => {
      turn = turn.then(() => handle(request))
    })
  }

  async function destroy(): Promise<void> {
    // Whatever fails here, the thread is to end; the process frees what is left.
    await stop().catch(() => {})
    guest.dispose?.()
    tell({ event: 'gone' })
    process.exit()
  }

  main.on('message', async (request: MainRequest) => {
    if (request.op === 'connect') return connect(request.port, request.cell)
    if (request.op === 'destroy') return destroy()
    tell({ event: 'reply', ...(await answer(request.id, mainOps[request.op])) })
  })
  setInterval(storeProgress, PROGRESS_INTERVAL_MS).unref()
}

async function answer(id: number, work: () => unknown): Promise<EngineReply> {
  try {
    return { id, value: await work() }
  } catch (error) {
    return { id, error: errorToMessage(error) }
  }
}

try {
  const guest = await createGuest()
  serve(guest)
  const { machine, blocks, unmapBlocks = false } = guest
  tell({ event: 'ready', machine, blocks, unmapBlocks })
} catch (error) {
  tell({ event: 'createFailed', error: errorToMessage(error) })
}
