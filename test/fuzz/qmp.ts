// Whatever a QMP server sends: messages of the four kinds, or a ProtocolError; and a client that always comes to an end.

import assert from 'node:assert/strict'
import { createServer, type Socket } from 'node:net'
import { ChannelError, ProtocolError } from '../../src/errors.js'
import { connectQmp, QmpError } from '../../src/qemu/qmp.js'
import { lineSplitter, parseMessage, type QmpMessage } from '../../src/qemu/qmp-wire.js'
import type { Pieces } from '../engine/base-streams.js'
import { type Hostile, spoil } from '../engine/mutations.js'
import type { Random } from '../engine/random.js'
import { assertTyped, type Ending, type Target } from './target.js'

const line = (text: string): Uint8Array => Buffer.from(`${text}\r\n`)
const GREETING = line(
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}',
)
const EVENT = line(
  '{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": "MIGRATION", "data": {"status": "active"}}',
)
const answer = (id: number): Uint8Array => line(`{"return": {"status": "running", "n": [1, 2]}, "id": ${id}}`)
const refusal = (id: number): Uint8Array =>
  line(`{"id": ${id}, "error": {"class": "GenericError", "desc": "no \\u00e9 \\ud834\\udd1e"}}`)

const BASES: readonly Pieces[] = [
  [GREETING, answer(1), EVENT, answer(2), EVENT, answer(3)],
  [GREETING, EVENT, answer(1), refusal(2), EVENT, refusal(3)],
]

const HOSTILE_LINES: readonly (() => Uint8Array)[] = [
  () => line('['.repeat(100_000)),
  () => line(`${'{"a":'.repeat(20_000)}1${'}'.repeat(20_000)}`),
  () => line(`{"return": ${'['.repeat(5000)}${']'.repeat(5000)}, "id": 1}`),
  () => line(`{"return": {}, "id": ${'['.repeat(50_000)}${']'.repeat(50_000)}}`),
  () => line(`{"QMP": ${'['.repeat(50_000)}${']'.repeat(50_000)}}`),
  () => line(`{"QMP": {"version": ${'{"a":'.repeat(20_000)}1${'}'.repeat(20_000)}, "capabilities": []}}`),
  () => line('{"return": {}, "id": 1e400}'),
  () => line('{"return": {}, "id": -1}'),
  () => line('{"return": {}, "id": "1"}'),
  () => line('{"return": {}, "id": 9007199254740993}'),
  () => line('{"return": {}, "id": 0}'),
  () => line('{"return": {}}'),
  () => line('{"__proto__": {"return": {}}, "id": 1}'),
  () => line('{"constructor": 1, "event": "__proto__", "data": {"__proto__": null}}'),
  () => line('{"event": "MIGRATION", "data": null}'),
  () => line('{"event": "MIGRATION", "timestamp": {"seconds": 1e308, "microseconds": 1e308}}'),
  () => line('{"error": null, "id": 1}'),
  () => line('{"QMP": null}'),
  () => line('{"QMP": {"version": {"qemu": {"major": "7"}}, "capabilities": [1, null, {}]}}'),
  () => line('null'),
  () => line('"'),
  () => line(''),
  () => Uint8Array.of(0xff, 0xfe, 0, 0x0a),
  () => Buffer.alloc(300_000, 'x'),
]
const HOSTILE: Hostile = { records: HOSTILE_LINES, pages: [] }

function spoiled(random: Random): Uint8Array {
  return spoil(random.pick(BASES), random, BASES, HOSTILE).bytes
}

/** The messages of `bytes` and how they ended, fed in pieces of up to `mostAtOnce`. */
function messagesOf(bytes: Uint8Array, random: Random, mostAtOnce: number) {
  const seen: QmpMessage[] = []
  const split = lineSplitter((text, offset) => void seen.push(parseMessage(text, offset)))
  try {
    for (let at = 0; at < bytes.length; ) {
      const count = 1 + random.integer(mostAtOnce)
      split(Buffer.from(bytes.subarray(at, at + count)))
      at += count
    }
    return { seen, ending: 'sound' as Ending }
  } catch (error) {
    assert(error instanceof ProtocolError, String(error))
    return { seen, ending: error as Ending }
  }
}

export const qmpParser: Target = {
  name: 'qmp-parser',
  skip: false,
  share: 1,
  open: () => ({
    run(random) {
      const bytes = spoiled(random)
      const inPieces = messagesOf(bytes, random, random.oneIn(50) ? 24 : 4096)
      const whole = messagesOf(bytes, random, 1 << 20)
      assert.equal(inPieces.seen.length, whole.seen.length)
      for (const [i, message] of whole.seen.entries()) assert.equal(inPieces.seen[i]!.kind, message.kind)
      assert.equal(String(inPieces.ending), String(whole.ending))
      return whole.ending
    },
    close() {},
  }),
}

/** How long the client waits for an answer that does not come. */
const ANSWER_MS = 30

/** Connects, gives two commands, waits for an event; all of it has to end, and what fails is typed. */
async function useClient(path: string): Promise<Ending> {
  const failures: unknown[] = []
  const settle = <T>(promise: Promise<T>): Promise<void> =>
    promise.then(
      () => {},
      (error) => void failures.push(error),
    )
  try {
    const qmp = await connectQmp(path, { timeoutMs: ANSWER_MS })
    const event = qmp.waitForEvent('MIGRATION', { timeoutMs: ANSWER_MS })
    await Promise.all([
      settle(qmp.execute('query-status', {}, { timeoutMs: ANSWER_MS })),
      settle(qmp.execute('query-migrate', {}, { timeoutMs: ANSWER_MS, oob: qmp.oob })),
      settle(event),
    ])
    await qmp.close()
    const ended = await qmp.closed
    if (ended !== undefined) failures.push(ended)
  } catch (error) {
    failures.push(error)
  }
  const [first] = failures.map(assertTyped)
  if (first === undefined || first instanceof QmpError) return 'sound'
  assert(first instanceof ProtocolError || first instanceof ChannelError, String(first))
  return first
}

/** Cut behind the lines that answer a command: a server sends each part when it is asked. */
function partsOf(bytes: Uint8Array): readonly Uint8Array[] {
  const text = Buffer.from(bytes).toString('latin1')
  return text.split(/(?<=^[^\n]*"id"[^\n]*\n)/m).map((part) => Buffer.from(part, 'latin1'))
}

/** The client at a server of its own, which sends the next part at each command, and then closes or is silent. */
export const qmpClient: Target = {
  name: 'qmp-client',
  skip: false,
  share: 2,
  async open() {
    const path = `/tmp/farfault-fuzz-qmp-${process.pid}`
    let serve: (socket: Socket) => void = () => {}
    const server = createServer((socket) => {
      socket.on('error', () => {})
      serve(socket)
    })
    await new Promise<void>((resolve) => server.listen(path, resolve))
    return {
      async run(random) {
        const whole = random.oneIn(8) ? Buffer.concat(random.pick(BASES)) : spoiled(random)
        const greeting = whole.indexOf(0x0a) + 1
        const parts = [whole.subarray(0, greeting), ...partsOf(whole.subarray(greeting))]
        const silent = random.oneIn(20)
        let peer: Socket | undefined
        serve = (socket) => {
          peer = socket
          const next = (): void => {
            const part = parts.shift()
            if (part !== undefined) socket.write(part)
            if (parts.length === 0 && !silent) socket.end()
          }
          next()
          let asked = ''
          socket.on('data', (chunk) => {
            asked += chunk.toString('latin1')
            const commands = asked.split('\n')
            asked = commands.pop()!
            for (const _ of commands) next()
          })
        }
        try {
          return await useClient(path)
        } finally {
          peer?.destroy()
        }
      },
      close: () => new Promise<void>((resolve) => server.close(() => resolve())),
    }
  },
}
