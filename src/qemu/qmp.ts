// QMP client: QEMU's control protocol over a unix socket. Runs on the main thread; nothing of the engine depends on it.
//
//   greeting ← , qmp_capabilities → , then any number of commands; answers are matched by id, events come in between.
//
// Out-of-band execution is switched on when QEMU offers it: `migrate-recover` and `migrate-pause` must get through
// while the main loop of QEMU is stuck on a missing page.

import { connect, type Socket } from 'node:net'
import { ChannelError, FarfaultError, ProtocolError } from '../errors.js'
import {
  type JsonObject,
  lineSplitter,
  parseMessage,
  type QmpFailure,
  type QmpGreeting,
  type QmpMessage,
  type QmpReturn,
} from './qmp-wire.js'

/** QEMU refused or failed a command. */
export class QmpError extends FarfaultError {
  readonly command: string
  /** QEMU's class: `GenericError`, `CommandNotFound`, `DeviceNotFound`, … */
  readonly errorClass: string
  /** QEMU's own sentence. */
  readonly description: string
  constructor(command: string, errorClass: string, description: string) {
    super('QMP', `${command}: ${description} (${errorClass})`)
    this.command = command
    this.errorClass = errorClass
    this.description = description
  }
}

/** Every value of `status` in `query-migrate` and in MIGRATION events, of QEMU 7.2 to 10.0. */
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'cancelling'
  | 'cancelled'
  | 'active'
  | 'postcopy-active'
  | 'postcopy-paused'
  | 'postcopy-recover-setup'
  | 'postcopy-recover'
  | 'completed'
  | 'failed'
  | 'colo'
  | 'pre-switchover'
  | 'device'
  | 'wait-unplug'

/** Data of the events we use; every other event has plain JSON. */
export interface QmpEvents {
  /** Needs the migration capability `events`. */
  readonly MIGRATION: { readonly status: MigrationStatus }
  readonly MIGRATION_PASS: { readonly pass: number }
  readonly RESUME: Readonly<Record<string, never>>
  readonly STOP: Readonly<Record<string, never>>
  readonly RESET: { readonly guest: boolean; readonly reason: string }
  readonly SHUTDOWN: { readonly guest: boolean; readonly reason: string }
}

export type QmpEventData<Name extends string> = Name extends keyof QmpEvents ? QmpEvents[Name] : JsonObject

/** `timeUs` is QEMU's clock: microseconds since the epoch. */
export type QmpListener<Name extends string> = (data: QmpEventData<Name>, timeUs: number) => void

export interface ExecuteOptions {
  /** How long to wait for the answer; default 10 s. */
  readonly timeoutMs?: number
  /** Execute out of band, ahead of commands that wait. Only few commands may. */
  readonly oob?: boolean
}

export interface WaitOptions<Name extends string> {
  readonly timeoutMs?: number
  /** Only an event whose data passes. */
  readonly where?: (data: QmpEventData<Name>) => boolean
}

export interface Qmp {
  readonly version: QmpGreeting['version']
  /** Out-of-band execution is on. */
  readonly oob: boolean
  /** Resolves when the connection is over: with the error that ended it, or undefined after `close`. Never rejects. */
  readonly closed: Promise<Error | undefined>
  /**
   * Run a command; resolves with its `return` value, unchecked.
   * Rejects with `QmpError` (refused), `ChannelError` (no answer in time, connection lost) or `ProtocolError`.
   */
  execute<Value = unknown>(command: string, args?: JsonObject, options?: ExecuteOptions): Promise<Value>
  /** Listen to an event; the returned function ends it. Events before the call are not seen. */
  on<Name extends string>(name: Name, listener: QmpListener<Name>): () => void
  /** The next such event. Call it *before* the command that causes the event, or the event may be missed. */
  waitForEvent<Name extends string>(name: Name, options?: WaitOptions<Name>): Promise<QmpEventData<Name>>
  /** End the connection. Commands that still wait are rejected. QEMU goes on. */
  close(): Promise<void>
}

const TIMEOUT_DEFAULT_MS = 10_000

/**
 * Connect to the QMP socket at `path` and negotiate.
 * Rejects with `ChannelError` (refused, no greeting in time) or `ProtocolError` (the peer is no QMP server).
 */
export async function connectQmp(path: string, { timeoutMs = TIMEOUT_DEFAULT_MS } = {}): Promise<Qmp> {
  const client = createClient(connect(path))
  try {
    const greeting = await client.greeting(timeoutMs)
    const oob = greeting.capabilities.includes('oob')
    await client.execute('qmp_capabilities', oob ? { enable: ['oob'] } : {}, { timeoutMs })
    const { execute, on, waitForEvent, close, closed } = client
    return { version: greeting.version, oob, closed, execute, on, waitForEvent, close }
  } catch (error) {
    await client.close()
    throw error
  }
}

function createClient(socket: Socket) {
  const pending = createPending()
  const answers = new Map<number | 'greeting', Waiter>()
  const listeners = new Map<string, Set<QmpListener<string>>>()
  let lastId = 0
  let resolveClosed: (error: Error | undefined) => void
  const closed = new Promise<Error | undefined>((resolve) => {
    resolveClosed = resolve
  })

  const end = (error: Error | undefined) => {
    socket.destroy()
    pending.end(error ?? new ChannelError('QMP: connection closed'))
    resolveClosed(error)
  }

  const waitForAnswer = <Value>(key: number | 'greeting', label: string, timeoutMs: number) =>
    pending.wait<Value>(label, timeoutMs, (waiter) => {
      answers.set(key, waiter)
      return () => answers.delete(key)
    })

  const settle = (message: QmpReturn | QmpFailure, offset: number) => {
    const { id } = message
    if (id === undefined || id > lastId) {
      const got = message.kind === 'failure' ? message.description : `id ${id}`
      const fields = { offset, record: 'QMP message', got }
      throw new ProtocolError('QMP: answer to a command that was not given', fields)
    }
    // Absent when the command was given up on: its late answer is of no interest.
    const waiter = answers.get(id)
    if (message.kind === 'return') waiter?.resolve(message.value)
    else waiter?.reject(new QmpError(waiter.label, message.errorClass, message.description))
  }

  const dispatch = (message: QmpMessage, offset: number) => {
    if (message.kind === 'greeting') answers.get('greeting')?.resolve(message)
    else if (message.kind !== 'event') settle(message, offset)
    else for (const listener of listeners.get(message.name) ?? []) listener(message.data, message.timeUs)
  }

  const split = lineSplitter((line, offset) => {
    if (!pending.ended()) dispatch(parseMessage(line, offset), offset)
  })
  socket.on('data', (chunk) => {
    try {
      split(chunk)
    } catch (error) {
      // Anything else was thrown by a listener, and is its author's.
      if (!(error instanceof ProtocolError)) throw error
      end(error)
    }
  })
  socket.on('error', (cause) => end(new ChannelError(`QMP: ${cause.message}`, { cause })))
  socket.on('close', () => end(new ChannelError('QMP: QEMU closed the connection')))

  const on: Qmp['on'] = (name, listener) => {
    const set = listeners.get(name) ?? new Set()
    listeners.set(name, set)
    set.add(listener as QmpListener<string>)
    return () => set.delete(listener as QmpListener<string>)
  }

  const execute: Qmp['execute'] = <Value>(command: string, args = {}, options: ExecuteOptions = {}) => {
    const { timeoutMs = TIMEOUT_DEFAULT_MS, oob = false } = options
    lastId += 1
    const answer = waitForAnswer<Value>(lastId, command, timeoutMs)
    const line = JSON.stringify({ [oob ? 'exec-oob' : 'execute']: command, arguments: args, id: lastId })
    if (!pending.ended()) socket.write(`${line}\n`)
    return answer
  }

  const waitForEvent: Qmp['waitForEvent'] = (name, options = {}) => {
    const { timeoutMs = TIMEOUT_DEFAULT_MS, where = () => true } = options
    const event = pending.wait<QmpEventData<typeof name>>(`${name} event`, timeoutMs, (waiter) =>
      on(name, (data) => {
        if (where(data)) waiter.resolve(data)
      }),
    )
    // The command that was to cause the event may fail first; the caller then never looks at this promise.
    event.catch(() => {})
    return event
  }

  const greeting = (timeoutMs: number) => waitForAnswer<QmpGreeting>('greeting', 'greeting', timeoutMs)
  const close = async () => end(undefined)
  return { closed, greeting, execute, on, waitForEvent, close }
}

interface Waiter {
  readonly label: string
  readonly resolve: (value: unknown) => void
  readonly reject: (error: Error) => void
}

/** Promises that have a time limit, and are all rejected when the connection ends. */
function createPending() {
  const waiters = new Set<Waiter>()
  let endedBy: Error | undefined

  /** `register` puts the waiter where its answer is looked up, and returns the function that takes it away. */
  const wait = <Value>(label: string, timeoutMs: number, register: (waiter: Waiter) => () => void) =>
    new Promise<Value>((resolve, reject) => {
      if (endedBy !== undefined) {
        reject(endedBy)
        return
      }
      const settle = () => {
        clearTimeout(timer)
        waiters.delete(waiter)
        unregister()
      }
      const waiter: Waiter = {
        label,
        resolve(value) {
          settle()
          resolve(value as Value)
        },
        reject(error) {
          settle()
          reject(error)
        },
      }
      const expired = new ChannelError(`QMP: no answer in time (${label}, ${timeoutMs} ms)`)
      const timer = setTimeout(waiter.reject, timeoutMs, expired)
      waiters.add(waiter)
      const unregister = register(waiter)
    })

  return {
    wait,
    ended: () => endedBy !== undefined,
    end(error: Error) {
      endedBy ??= error
      for (const waiter of [...waiters]) waiter.reject(endedBy)
    },
  }
}
