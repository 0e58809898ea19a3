// A proxy between a source and a destination that understands the stream record by record, and lets go wrong what its
// plan says. Runs in the event loop of the test; a record is passed on in the turn in which its last byte came.
//
// Several connections go through one proxy: a second one while the first is open is the channel for urgent pages; one
// that comes after the first has gone is another attempt, or the recovery of what was cut.

import { connect, createServer, type Socket } from 'node:net'
import { parseUri } from '../../src/os/uri.js'
import { createPageLedger, type PageLedger } from './pages.js'
import {
  type ChannelName,
  createTrigger,
  type Direction,
  type Fault,
  type FaultPlan,
  type Point,
} from './plan.js'
import {
  createBackSplitter,
  createForwardSplitter,
  type RecordKind,
  type Splitter,
  type StreamFacts,
  type WireRecord,
} from './records.js'

/** Bytes that may wait for a delay before the sender is no longer read. */
const WAITING_BYTES_MAX = 1024 * 1024

/** QEMU's value, and ours. */
const PING_BEHIND_DEVICES = 3

export interface ConnectionLog {
  readonly channel: ChannelName
  /** Records that came, by direction, in order. */
  readonly kinds: Readonly<Record<Direction, readonly RecordKind[]>>
  /** Records that came after the package had gone through. */
  readonly afterPackage: Readonly<Record<Direction, number>>
}

export interface FaultProxy {
  /** Where the source connects. */
  readonly uri: string
  readonly connections: readonly ConnectionLog[]
  readonly pages: PageLedger
  readonly fired: readonly Fault[]
  /** Resolves when that many faults have happened. */
  happened(count: number): Promise<void>
  /** How far the migration has come. */
  readonly passed: ReadonlySet<Point>
  /** Forget the plan, and follow this one; what was counted begins anew. */
  plan(plan: FaultPlan): void
  /** Break what is open, now. */
  cut(by?: 'rst' | 'fin'): void
  close(): Promise<void>
}

export interface ProxyOptions {
  /** `tcp:HOST:PORT` (port 0: any) or `unix:PATH`. */
  readonly listen: string
  /** Asked anew for each connection: a destination that recovers may listen elsewhere. */
  readonly to: () => string
  readonly plan?: FaultPlan
}

/** One direction of a connection. */
interface Line {
  readonly direction: Direction
  readonly from: Socket
  readonly to: Socket
  readonly splitter: Splitter
  readonly kinds: RecordKind[]
  afterPackage: number
  delayMs: number
  /** Delayed records, and when each is due. */
  readonly waiting: { bytes: Buffer; dueMs: number }[]
  waitingBytes: number
  timer: NodeJS.Timeout | undefined
  stalled: boolean
  /** The sender has said all that it will. */
  ended: boolean
}

interface Connection {
  readonly channel: ChannelName
  readonly index: number
  readonly near: Socket
  readonly far: Socket
  readonly lines: readonly Line[]
  /** Nothing more is passed on. */
  cut: boolean
  open: boolean
}

export async function startFaultProxy({ listen, to, plan = [] }: ProxyOptions): Promise<FaultProxy> {
  const facts: StreamFacts = { machine: '', postcopy: false }
  const connections: Connection[] = []
  const logs: ConnectionLog[] = []
  const pages = createPageLedger()
  let trigger = createTrigger(plan)
  let passed = new Set<Point>(['start'])
  let waiters: { count: number; resolve: () => void }[] = []

  function accept(near: Socket): void {
    const main = connections.findLast(({ channel }) => channel === 'main')
    const channel: ChannelName = main?.open ? 'preempt' : 'main'
    const index = connections.filter((each) => each.channel === channel).length
    if (channel === 'main') pages.session()
    const far = connectTo(to())
    const forward = createLine('forward', near, far, createForwardSplitter(facts, channel === 'preempt'))
    const back = createLine('back', far, near, createBackSplitter())
    const connection: Connection = {
      channel,
      index,
      near,
      far,
      lines: [forward, back],
      cut: false,
      open: true,
    }
    connections.push(connection)
    logs.push({
      channel,
      kinds: { forward: forward.kinds, back: back.kinds },
      get afterPackage() {
        return { forward: forward.afterPackage, back: back.afterPackage }
      },
    })
    for (const each of connection.lines) listenTo(connection, each)
  }

  function listenTo(connection: Connection, line: Line): void {
    const { from, to } = line
    from.setNoDelay?.(true)
    from.on('data', (chunk: Buffer) => {
      line.splitter.feed(chunk)
      pump(connection, line)
    })
    from.on('end', () => {
      line.ended = true
      if (line.direction === 'forward') connection.open = false // the source's next one is another attempt
      pump(connection, line)
    })
    from.on('error', () => {
      // The fate of one end is the other's.
      if (!connection.cut) breakOff(connection, 'rst')
    })
    from.on('close', () => {
      connection.open = false
    })
    to.on('drain', () => {
      if (!line.stalled && line.waitingBytes < WAITING_BYTES_MAX) from.resume()
    })
  }

  /** Passes on what is there, up to a record at which something happens. */
  function pump(connection: Connection, line: Line): void {
    line.to.cork() // one call for all records of a chunk
    while (!connection.cut && !line.stalled) {
      const record = line.splitter.next()
      if (record === undefined) break
      pass(connection, line, record)
    }
    // Read already, and never to arrive: the sender believes that these went out.
    if (connection.cut)
      for (let r = line.splitter.next(); r !== undefined; r = line.splitter.next()) note(line, r, false)
    line.to.uncork()
    if (line.ended && !line.stalled && !connection.cut && line.waiting.length === 0) {
      line.ended = false
      line.to.end(line.splitter.rest())
    }
  }

  function note(line: Line, record: WireRecord, whole: boolean): void {
    line.kinds.push(record.kind)
    if (passed.has('package')) line.afterPackage++
    pages.note(record, whole)
    if (record.kind === 'header') passed = new Set(['start'])
    if (whole && record.kind === 'package') passed.add('package')
    if (record.kind === 'PONG' && record.value === PING_BEHIND_DEVICES) passed.add('loaded')
  }

  function pass(connection: Connection, line: Line, record: WireRecord): void {
    const { channel, index } = connection
    const where = { channel, connection: index, direction: line.direction, passed }
    const action = trigger.at(where, record.kind)?.action
    switch (action?.do) {
      case 'cut':
        note(line, record, false)
        breakOff(connection, action.by)
        break
      case 'truncate':
        note(line, record, false)
        line.to.write(record.bytes.subarray(0, action.bytes % record.bytes.length))
        breakOff(connection, 'fin')
        break
      case 'corrupt': {
        note(line, record, false)
        const bytes = Buffer.from(record.bytes)
        const bit = action.bit % (bytes.length * 8)
        bytes[bit >> 3]! ^= 1 << (bit & 7)
        send(connection, line, bytes)
        break
      }
      case 'stall':
        line.stalled = true
        line.from.pause()
        setTimeout(() => {
          line.stalled = false
          line.from.resume()
          pump(connection, line)
        }, action.ms)
        note(line, record, true)
        send(connection, line, record.bytes, action.ms)
        break
      case 'delay':
        line.delayMs = action.ms
        note(line, record, true)
        send(connection, line, record.bytes)
        break
      default:
        note(line, record, true)
        send(connection, line, record.bytes)
    }
    if (action === undefined) return
    for (const { count, resolve } of waiters) if (trigger.fired.length >= count) resolve()
    waiters = waiters.filter(({ count }) => trigger.fired.length < count)
  }

  function send(connection: Connection, line: Line, bytes: Buffer, onceMs = 0): void {
    const delayMs = line.delayMs + onceMs
    if (delayMs === 0 && line.waiting.length === 0) {
      if (!line.to.write(bytes)) line.from.pause()
      return
    }
    line.waiting.push({ bytes, dueMs: performance.now() + delayMs })
    line.waitingBytes += bytes.length
    if (line.waitingBytes >= WAITING_BYTES_MAX) line.from.pause()
    line.timer ??= setTimeout(() => sendDue(connection, line), delayMs)
  }

  function sendDue(connection: Connection, line: Line): void {
    line.timer = undefined
    if (connection.cut) return
    const nowMs = performance.now()
    line.to.cork()
    while (line.waiting.length > 0 && line.waiting[0]!.dueMs <= nowMs) {
      const { bytes } = line.waiting.shift()!
      line.waitingBytes -= bytes.length
      line.to.write(bytes)
    }
    line.to.uncork()
    if (line.waiting.length > 0) {
      line.timer = setTimeout(() => sendDue(connection, line), Math.max(1, line.waiting[0]!.dueMs - nowMs))
    }
    if (!line.stalled && line.waitingBytes < WAITING_BYTES_MAX) line.from.resume()
    pump(connection, line)
  }

  function breakOff(connection: Connection, by: 'rst' | 'fin'): void {
    if (connection.cut) return
    connection.cut = true
    connection.open = false
    for (const { timer } of connection.lines) clearTimeout(timer)
    const { near, far } = connection
    if (by === 'fin') {
      // As when a process ends: the source's next bytes meet a closed socket. What was passed on arrives over there.
      near.destroySoon()
      far.end()
      far.resume()
      far.setTimeout(5000, () => far.destroy())
      return
    }
    for (const socket of [near, far]) {
      if (socket.remotePort === undefined) socket.destroy()
      else socket.resetAndDestroy()
    }
  }

  const server = createServer({ allowHalfOpen: true, noDelay: true }, accept)
  await new Promise<void>((resolve, reject) => {
    server.on('error', reject)
    const uri = parseUri(listen)
    if (uri.kind === 'tcp') server.listen(uri.port, uri.host, resolve)
    else if (uri.kind === 'unix') server.listen(uri.path, resolve)
    else reject(new Error(`a proxy cannot listen on ${listen}`))
  })
  const address = server.address()
  const uri =
    typeof address === 'object' && address !== null ? `tcp:${address.address}:${address.port}` : listen

  return {
    uri,
    connections: logs,
    pages,
    get fired() {
      return trigger.fired
    },
    happened: (count) =>
      new Promise((resolve) => {
        if (trigger.fired.length >= count) resolve()
        else waiters.push({ count, resolve })
      }),
    get passed() {
      return passed
    },
    plan(next) {
      trigger = createTrigger(next)
    },
    cut(by = 'rst') {
      for (const connection of connections) if (connection.open) breakOff(connection, by)
    },
    async close() {
      for (const { near, far } of connections) {
        near.destroy()
        far.destroy()
      }
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

function createLine(direction: Direction, from: Socket, to: Socket, splitter: Splitter): Line {
  return {
    direction,
    from,
    to,
    splitter,
    kinds: [],
    afterPackage: 0,
    delayMs: 0,
    waiting: [],
    waitingBytes: 0,
    timer: undefined,
    stalled: false,
    ended: false,
  }
}

function connectTo(text: string): Socket {
  const uri = parseUri(text)
  if (uri.kind === 'tcp') {
    return connect({ host: uri.host, port: uri.port, allowHalfOpen: true, noDelay: true })
  }
  if (uri.kind === 'unix') return connect({ path: uri.path, allowHalfOpen: true })
  throw new Error(`a proxy cannot connect to ${text}`)
}
