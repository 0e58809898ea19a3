// Error classes and codes, and how an error crosses a thread boundary. Imported by every part; runs on every thread.
//
// One base class with a `code`; a leaf for each kind of trouble, carrying the fields that say where it is.
// Broken invariants of our own are `node:assert` and are not listed here.

export class FarfaultError extends Error {
  /** Stable, upper-case, for programs: `PROTOCOL`, `CHANNEL`, … */
  readonly code: string
  constructor(code: string, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.name = new.target.name
    this.code = code
  }
}

/** What was thrown, as a sentence. */
export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

export interface ProtocolErrorFields {
  /** Byte offset in the stream at which the offending record or field begins. */
  readonly offset: number
  /** What was being read: `section header`, `POSTCOPY_RAM_DISCARD`, `ram page record`, … */
  readonly record: string
  readonly expected?: string
  readonly got?: string
}

/** The peer's bytes do not follow the protocol. */
export class ProtocolError extends FarfaultError {
  readonly offset: number
  readonly record: string
  readonly expected: string | undefined
  readonly got: string | undefined
  constructor(what: string, fields: ProtocolErrorFields) {
    const detail = [
      fields.expected === undefined ? '' : `, expected ${fields.expected}`,
      fields.got === undefined ? '' : `, got ${fields.got}`,
    ].join('')
    super('PROTOCOL', `${what} (${fields.record} at stream offset ${fields.offset}${detail})`)
    this.offset = fields.offset
    this.record = fields.record
    this.expected = fields.expected
    this.got = fields.got
  }
}

/** A state machine was told an event that its present state does not know. The state has not moved. */
export class IllegalTransition extends FarfaultError {
  readonly machine: string
  readonly from: string
  readonly event: string
  constructor(machine: string, from: string, event: string) {
    super('ILLEGAL_TRANSITION', `${machine}: "${event}" is not legal in state "${from}"`)
    this.machine = machine
    this.from = from
    this.event = event
  }
}

/** The connection ended or broke: end of stream, reset, refused, timed out. */
export class ChannelError extends FarfaultError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('CHANNEL', message, options)
  }
}

/** A TLS connection was not made, by us or by the peer, or it broke. */
export class TlsError extends ChannelError {
  override readonly code = 'TLS'
  /** For programs: see `REASONS` in tls/reasons.ts. */
  readonly reason: string
  constructor(reason: string, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.reason = reason
  }
}

/** A system call failed in a way that is not part of normal life. */
export class SystemError extends FarfaultError {
  readonly call: string
  /** Symbolic name: `EINVAL`. */
  readonly errnoName: string
  constructor(call: string, errnoName: string, detail = '') {
    super('SYSTEM', `${call}: ${errnoName}${detail === '' ? '' : ` (${detail})`}`)
    this.call = call
    this.errnoName = errnoName
  }
}

/** This host cannot do it; found before any guest is touched. The message says what to change. */
export class HostUnsupportedError extends FarfaultError {
  constructor(message: string) {
    super('HOST_UNSUPPORTED', message)
  }
}

/** A parked image is damaged or is not one. */
export class ImageError extends FarfaultError {
  readonly file: string
  readonly offset: number
  constructor(message: string, file: string, offset: number) {
    super('IMAGE', `${file}, offset ${offset}: ${message}`)
    this.file = file
    this.offset = offset
  }
}

/** The guest itself failed: it could not be created, stopped, loaded, or its check found a wrong byte. */
export class GuestError extends FarfaultError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('GUEST', message, options)
  }
}

/** What the caller asked for cannot be: a bad option, a bad URI, a call in the wrong order. */
export class UsageError extends FarfaultError {
  constructor(message: string) {
    super('USAGE', message)
  }
}

/** The migration was cancelled before the switch; the source guest runs on. */
export class CancelledError extends FarfaultError {
  constructor(message = 'migration cancelled') {
    super('CANCELLED', message)
  }
}

/** An error as plain data, for `postMessage`: structured clone keeps neither the class nor its fields. */
export interface ErrorMessage {
  readonly kind: string
  readonly message: string
  readonly fields: Readonly<Record<string, unknown>>
  readonly stack: string
  readonly cause?: ErrorMessage
}

const LEAVES: Readonly<Record<string, { prototype: FarfaultError }>> = {
  FarfaultError,
  ProtocolError,
  IllegalTransition,
  ChannelError,
  TlsError,
  SystemError,
  HostUnsupportedError,
  ImageError,
  GuestError,
  UsageError,
  CancelledError,
}

export function errorToMessage(error: unknown): ErrorMessage {
  if (!(error instanceof Error)) {
    return { kind: 'Error', message: String(error), fields: {}, stack: '' }
  }
  const { name, message, stack, cause, ...fields } = error as Error & Record<string, unknown>
  const plain = { kind: error.name, message: error.message, fields, stack: error.stack ?? '' }
  return error.cause === undefined ? plain : { ...plain, cause: errorToMessage(error.cause) }
}

/** The inverse of `errorToMessage`: the same class, fields, message and stack. */
export function errorFromMessage(plain: ErrorMessage): Error {
  const prototype = LEAVES[plain.kind]?.prototype ?? Error.prototype
  const error = Object.create(prototype) as Error
  const own = { ...plain.fields, name: plain.kind, message: plain.message, stack: plain.stack }
  for (const [key, value] of Object.entries(own)) {
    Object.defineProperty(error, key, {
      value,
      writable: true,
      configurable: true,
      enumerable: key in plain.fields,
    })
  }
  if (plain.cause !== undefined) error.cause = errorFromMessage(plain.cause)
  return error
}
