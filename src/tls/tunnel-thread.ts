// The tunnel thread: has the TCP sockets, and lets the engine have what passes through them once the peer is
// authenticated. An event loop of its own, so that no page waits for what the main thread does.
//
// Towards the engine there is a unix socket in a directory that only this user can enter. So the engine listens and
// connects as it does without TLS, over as many connections as it likes.

import { connect as connectSocket, createServer, Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { parentPort, workerData } from 'node:worker_threads'
import { type ErrorMessage, errorToMessage } from '../errors.js'
import { LIMITS } from '../limits.js'
import { acknowledge, connectTo } from '../os/channel.js'
import { sayEnded } from '../thread.js'
import type { Credentials } from './credentials.js'
import { type ClientIdentity, handshakeAsClient, handshakeAsServer } from './handshake.js'
import { type TlsFailure, tlsError } from './reasons.js'
import { splice } from './splice.js'

export type TunnelThreadData =
  | {
      readonly role: 'server'
      /** Listens where peers connect. This thread closes it. */
      readonly listenFd: number
      /** Where the engine listens. */
      readonly enginePath: string
      readonly credentials: Credentials
    }
  | (ClientIdentity & {
      readonly role: 'client'
      /** Listens where the engine connects. This thread closes it. */
      readonly listenFd: number
      readonly to: string
      readonly wakeFd: number
    })

/** To the main thread: a peer was refused; or the connection of the engine is about to end, and why. */
export type TunnelThreadMessage = { readonly refused: ErrorMessage } | { readonly lost: ErrorMessage }
/** From it: take no more connections; the reason has been noted; the engine is done. */
export type TunnelOrder = 'close' | 'noted' | 'end'

type ServerData = TunnelThreadData & { readonly role: 'server' }
type ClientData = TunnelThreadData & { readonly role: 'client' }

/** How long the main thread may take to note why a connection ends, ms. */
const NOTED_MS = 500
/** How long what the engine has sent may take to be sent out, when the engine is done, ms. */
const LAST_BYTES_MS = 1000

const data = workerData as TunnelThreadData
const main = parentPort!
const tell = (message: TunnelThreadMessage): void => main.postMessage(message)
/** Connections that are not over. */
const open = new Set<Promise<void>>()
let noted: (() => void)[] = []

/** Resolves when the main thread knows: then the engine may see its connection end. */
function tellLost(error: unknown): Promise<void> {
  tell({ lost: errorToMessage(error) })
  return new Promise((resolve) => {
    noted.push(resolve)
    setTimeout(resolve, NOTED_MS).unref()
  })
}

function keep(connection: Promise<void>): void {
  open.add(connection)
  void connection.finally(() => open.delete(connection))
}

function join(inner: Socket, outer: TLSSocket, peer: string, onBytes = () => {}): Promise<void> {
  return splice(
    inner,
    outer,
    (failure, silent) => tellLost(tlsError(peer, failure, reasonBehindHandshake(failure, silent))),
    onBytes,
  )
}

/** An alert says itself what it is. */
const reasonBehindHandshake = ({ code = '' }: TlsFailure, silent: boolean) =>
  /ALERT/.test(code) ? undefined : silent ? 'refused' : 'broken'

/** A peer that has proved who it is gets through to the engine with the first byte that it sends. */
async function admit(raw: Socket, { enginePath, credentials }: ServerData, queue: Queue): Promise<void> {
  const peer = `TLS connection from ${nameOf(raw)}`
  const outer = await handshakeAsServer(raw, credentials, peer)
  queue.know(raw)
  await firstBytes(outer, peer)
  queue.leave(raw)
  return join(connectSocket({ path: enginePath, allowHalfOpen: true }), outer, peer)
}

/** Resolves when there is something to read. Rejects when the peer, now that it knows who we are, has second thoughts. */
function firstBytes(outer: TLSSocket, peer: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const refuse = (failure: TlsFailure = {}): void => {
      outer.destroy()
      reject(tlsError(peer, failure, reasonBehindHandshake(failure, true)))
    }
    const gone = (): void => refuse()
    if (outer.destroyed) return refuse((outer.errored ?? {}) as TlsFailure)
    const look = (): void => {
      if (outer.readableLength === 0) return // the end, which has an event of its own
      outer.off('readable', look).off('error', refuse).off('end', gone).off('close', gone)
      resolve()
    }
    outer.on('readable', look).on('error', refuse).on('end', gone).on('close', gone)
  })
}

const nameOf = ({ remoteAddress = '', remotePort = 0 }: Socket): string =>
  remoteAddress.includes(':') ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`

/** Who is not through to the engine yet. */
interface Queue {
  know(raw: Socket): void
  leave(raw: Socket): void
}

function serve(own: ServerData): () => void {
  /** Oldest first. */
  const strangers = new Set<Socket>()
  const known = new Set<Socket>()
  let closed = false
  const queue: Queue = {
    know(raw) {
      strangers.delete(raw)
      known.add(raw)
    },
    leave(raw) {
      strangers.delete(raw)
      known.delete(raw)
    },
  }
  const server = createServer({ noDelay: true }, (raw) => {
    const [oldest] = strangers
    if (strangers.size >= LIMITS.tlsHandshakesMax) oldest!.destroy()
    strangers.add(raw)
    raw.on('close', () => queue.leave(raw))
    const refused = (error: unknown): void => {
      if (!closed) tell({ refused: errorToMessage(error) })
    }
    keep(admit(raw, own, queue).catch(refused))
  })
  server.listen({ fd: own.listenFd })
  return () => {
    closed = true
    server.close()
    for (const raw of [...strangers, ...known]) raw.destroy()
  }
}

/** One after the other: QEMU tells the channels of a migration by the order in which they come. */
function goOut(own: ClientData): () => void {
  let last: Promise<unknown> = Promise.resolve()
  const server = createServer({ allowHalfOpen: true }, (inner) => {
    inner.on('error', () => {})
    const connected = last.then(() => secured(own))
    last = connected.catch(() => {})
    keep(
      connected.then(
        // QEMU's answers are small, and each waits for our acknowledgement of the last, which the kernel likes to put off.
        ({ outer, fd }) => join(inner, outer, `TLS connection to ${own.to}`, () => acknowledge(fd)),
        async (error) => {
          await tellLost(error)
          inner.destroy()
        },
      ),
    )
  })
  server.listen({ fd: own.listenFd })
  return () => server.close()
}

async function secured({
  to,
  wakeFd,
  ...identity
}: TunnelThreadData & { role: 'client' }): Promise<{ readonly outer: TLSSocket; readonly fd: number }> {
  const fd = connectTo(to, { wakeFd, timeoutMs: LIMITS.connectMs })
  const raw = new Socket({ fd, readable: true, writable: true })
  const outer = await handshakeAsClient(raw, identity, `TLS handshake with ${to}`)
  return { outer, fd }
}

async function end(): Promise<void> {
  close()
  setTimeout(leave, LAST_BYTES_MS)
  while (open.size > 0) await Promise.allSettled(open)
  leave()
}

function leave(): never {
  sayEnded()
  process.exit() // this thread, not the process
}

const close = data.role === 'server' ? serve(data) : goOut(data)
main.on('message', (order: TunnelOrder) => {
  if (order === 'close') close()
  else if (order === 'end') void end()
  else {
    for (const resolve of noted) resolve()
    noted = []
  }
})
