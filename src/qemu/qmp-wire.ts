// QMP's bytes: JSON objects, one a line, and the four kinds of message a server sends. Pure; runs on the main thread.
//
// Source: QEMU's docs/interop/qmp-spec. Only the envelope is checked; what is inside `return` and `data` depends on the
// command or event, and is the caller's to judge.

import { ProtocolError } from '../errors.js'
import { LIMITS } from '../limits.js'

export interface QmpGreeting {
  readonly kind: 'greeting'
  readonly version: { readonly major: number; readonly minor: number; readonly micro: number }
  /** What the server offers in `qmp_capabilities`: `oob` in every QEMU since 2.12. */
  readonly capabilities: readonly string[]
}

export interface QmpReturn {
  readonly kind: 'return'
  readonly id: number
  readonly value: unknown
}

export interface QmpFailure {
  readonly kind: 'failure'
  /** Absent when the server could not read the command that it complains about. */
  readonly id: number | undefined
  readonly errorClass: string
  readonly description: string
}

export interface QmpEventMessage {
  readonly kind: 'event'
  readonly name: string
  readonly data: JsonObject
  /** Server's clock, microseconds since the epoch; 0 when it has none. */
  readonly timeUs: number
}

export type QmpMessage = QmpGreeting | QmpReturn | QmpFailure | QmpEventMessage

export type JsonObject = Readonly<Record<string, unknown>>

/** Called for each complete line, with the offset of its first byte in the stream. */
export type LineHandler = (line: string, offset: number) => void

/**
 * Cut a byte stream into lines; the returned function takes the stream's chunks in order.
 * A line longer than `LIMITS.qmpLineBytesMax` is a `ProtocolError`, whether or not its end has arrived.
 */
export function lineSplitter(handle: LineHandler): (chunk: Buffer) => void {
  let pieces: Buffer[] = []
  let length = 0
  let lineOffset = 0
  return (chunk) => {
    let start = 0
    while (start < chunk.length) {
      const newline = chunk.indexOf(0x0a, start)
      const end = newline === -1 ? chunk.length : newline + 1
      length += end - start
      if (length > LIMITS.qmpLineBytesMax) {
        throw bad('line too long', lineOffset, `at most ${LIMITS.qmpLineBytesMax} bytes`)
      }
      pieces.push(chunk.subarray(start, end))
      start = end
      if (newline === -1) return
      const line = Buffer.concat(pieces, length).toString('utf8').trim()
      const offset = lineOffset
      lineOffset += length
      pieces = []
      length = 0
      if (line !== '') handle(line, offset)
    }
  }
}

/** One line as a message. Throws `ProtocolError` for anything that is none of the four kinds. */
export function parseMessage(line: string, offset: number): QmpMessage {
  const message = parseObject(line, offset)
  if ('QMP' in message) return parseGreeting(message.QMP, offset)
  if ('event' in message) return parseEvent(message, offset)
  if ('return' in message) {
    if (!isId(message.id)) throw bad('answer without a usable id', offset, 'a number', shortText(message.id))
    return { kind: 'return', id: message.id, value: message.return }
  }
  if ('error' in message) return parseFailure(message, offset)
  throw bad(
    'unknown message',
    offset,
    'QMP, event, return or error',
    Object.keys(message).join(', ').slice(0, 80),
  )
}

function parseObject(line: string, offset: number): JsonObject {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw bad('not JSON', offset, 'a JSON object', JSON.stringify(line.slice(0, 40)))
  }
  if (!isObject(value)) throw bad('not an object', offset, 'a JSON object', line.slice(0, 40))
  return value
}

/** `{"QMP": {"version": {"qemu": {"major": 7, …}, "package": …}, "capabilities": ["oob"]}}` */
function parseGreeting(body: unknown, offset: number): QmpGreeting {
  const version = isObject(body) && isObject(body.version) ? body.version.qemu : undefined
  const capabilities = isObject(body) ? body.capabilities : undefined
  if (!isObject(version) || !Array.isArray(capabilities)) {
    throw bad('bad greeting', offset, 'version.qemu and capabilities', shortText(body))
  }
  const part = (key: string) => (isId(version[key]) ? version[key] : 0)
  return {
    kind: 'greeting',
    version: { major: part('major'), minor: part('minor'), micro: part('micro') },
    capabilities: capabilities.filter((name) => typeof name === 'string'),
  }
}

/** `{"event": "STOP", "data": {…}, "timestamp": {"seconds": …, "microseconds": …}}`; data only when there is any. */
function parseEvent(message: JsonObject, offset: number): QmpEventMessage {
  const { event, data = {}, timestamp } = message
  if (typeof event !== 'string' || !isObject(data)) throw bad('bad event', offset, 'a name and an object')
  const clock = isObject(timestamp) ? timestamp : {}
  const { seconds, microseconds } = clock
  const known = typeof seconds === 'number' && typeof microseconds === 'number' && seconds >= 0
  return { kind: 'event', name: event, data, timeUs: known ? seconds * 1e6 + microseconds : 0 }
}

/** `{"error": {"class": "GenericError", "desc": "…"}, "id": 7}` */
function parseFailure(message: JsonObject, offset: number): QmpFailure {
  const { error, id } = message
  if (!isObject(error) || typeof error.class !== 'string' || typeof error.desc !== 'string') {
    throw bad('bad error answer', offset, 'class and desc')
  }
  return {
    kind: 'failure',
    id: isId(id) ? id : undefined,
    errorClass: error.class,
    description: error.desc,
  }
}

/** What a peer sent, for an error. Only the outermost layer: a value may be nested deeper than the stack is. */
function shortText(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value).slice(0, 80)
  return Array.isArray(value) ? 'a list' : `an object with ${Object.keys(value).join(', ')}`.slice(0, 80)
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isId(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

function bad(what: string, offset: number, expected: string, got?: string): ProtocolError {
  return new ProtocolError(`QMP: ${what}`, {
    offset,
    record: 'QMP message',
    expected,
    ...(got === undefined ? {} : { got }),
  })
}
