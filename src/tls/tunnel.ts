// TLS for the engine, which knows nothing of it: where it listens or connects, in place of the address that the user
// gave, with a tunnel thread in between. Main thread.

import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ChannelError, errorFromMessage, type TlsError, UsageError } from '../errors.js'
import { beforeExit } from '../exit-hook.js'
import { isReachable, type Listener, listenOn, parseUri } from '../os/channel.js'
import { createWake } from '../os/wake.js'
import { followThread, startThread } from '../thread.js'
import { loadCredentials } from './credentials.js'
import type { ClientIdentity } from './handshake.js'
import type { TunnelOrder, TunnelThreadData, TunnelThreadMessage } from './tunnel-thread.js'

export interface TlsOptions {
  /**
   * Has the credentials, under the names that QEMU's tls-creds objects want: `ca-cert.pem`, `server-cert.pem`,
   * `server-key.pem`, `client-cert.pem`, `client-key.pem`, `ca-crl.pem`; or `keys.psk`.
   */
  readonly directory: string
}

export interface TlsListenOptions extends TlsOptions {
  /** Somebody connected and was turned away; the listener goes on. */
  readonly onRefused?: (error: TlsError) => void
}

export interface TlsConnectOptions extends TlsOptions {
  /** What the server's certificate must be for. Default: the host that is connected to. */
  readonly hostname?: string
  /** Whose key of `keys.psk` is used. Default `qemu`, as QEMU has it. */
  readonly username?: string
}

interface Ends {
  /** What ended the last connection, where the tunnel knows better than the engine, which saw no more than the end. */
  reasonFor(error: Error): Error
  /** The engine is done with all its connections. Resolves when what it sent is on its way. */
  ended(): Promise<void>
}

export interface ListenOptions {
  readonly listen: string
  readonly tls?: TlsListenOptions | undefined
  readonly insecure?: boolean | undefined
}

/** Like a listener of the engine's own. Whoever is accepted there is authenticated, or was let in by the user's word. */
export type GuardedListener = Listener & Ends

/** Where the engine connects to. */
export interface Tunnel extends Ends {
  readonly uri: string
}

const PLAIN: Ends = { reasonFor: (error) => error, ended: async () => {} }

/** Listens at once. @throws UsageError, ChannelError */
export function openListener({ listen, tls, insecure = false }: ListenOptions): GuardedListener {
  if (tls !== undefined) return listenWithTls(listen, tls)
  const listener = listenOn(listen)
  if (insecure || !isReachable(listener.fd)) return { ...listener, ...PLAIN }
  listener.close()
  throw new UsageError(
    `${listen} can be reached from other hosts, and whoever connects there would be believed: use TLS (tls, --tls-dir), ` +
      'an address of this host alone (127.0.0.1, [::1]), or say that it is meant (insecure, --insecure)',
  )
}

function listenWithTls(
  listen: string,
  { directory, onRefused = () => {} }: TlsListenOptions,
): GuardedListener {
  assertTcp(listen)
  const credentials = loadCredentials(directory, 'server')
  const outer = listenOn(listen) // the tunnel thread closes it
  const door = openDoor()
  const thread = startTunnel(
    { role: 'server', listenFd: outer.fd, enginePath: door.path, credentials },
    onRefused,
    // The engine waits for somebody to come, and would for ever.
    () =>
      connect(door.path)
        .on('error', () => {})
        .end(),
  )
  return {
    fd: door.listener.fd,
    uri: outer.uri,
    close() {
      thread.order('close')
      door.listener.close()
    },
    reasonFor: thread.reasonFor,
    async ended() {
      await thread.ended()
      door.remove()
    },
  }
}

/** @throws UsageError when it cannot be done, whoever the peer is. */
export function assertTls(to: string, tls: TlsConnectOptions): void {
  identityFor(to, tls)
}

function identityFor(to: string, tls: TlsConnectOptions): ClientIdentity {
  const { host } = assertTcp(to)
  const { directory, hostname = host === '' ? 'localhost' : host, username = DEFAULT_USER } = tls
  const credentials = loadCredentials(directory, 'client')
  if (credentials.kind === 'psk' && !Object.hasOwn(credentials.keys, username))
    throw new UsageError(`${join(directory, 'keys.psk')} has no key for the user "${username}"`)
  return { credentials, hostname, username }
}

/** The handshake begins when the engine connects. @throws UsageError */
export function openTunnel(to: string, tls: TlsConnectOptions): Tunnel {
  const identity = identityFor(to, tls)
  const door = openDoor()
  const wake = createWake()
  const thread = startTunnel({
    ...{ role: 'client', listenFd: door.listener.fd, to, wakeFd: wake.fd },
    ...identity,
  })
  return {
    uri: door.listener.uri,
    reasonFor: thread.reasonFor,
    async ended() {
      wake.signal()
      await thread.ended()
      wake.close()
      door.remove()
    },
  }
}

const DEFAULT_USER = 'qemu'

/** @throws UsageError for what is not reached over TCP. */
export function assertTcp(text: string): { readonly host: string } {
  const uri = parseUri(text)
  if (uri.kind === 'tcp') return uri
  throw new UsageError(`TLS is for tcp:HOST:PORT; ${text} stays on this host and needs none`)
}

interface Door {
  readonly listener: Listener
  readonly path: string
  /** Idempotent. */
  remove(): void
}

/** A unix socket between the engine and the tunnel, in a directory that only this user can enter. */
function openDoor(): Door {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-tls-'))
  const remove = (): void => rmSync(directory, { recursive: true, force: true })
  const forget = beforeExit(remove)
  const path = join(directory, 'engine')
  return {
    listener: listenOn({ kind: 'unix', path }),
    path,
    remove() {
      forget()
      remove()
    },
  }
}

interface TunnelThread extends Ends {
  order(order: TunnelOrder): void
}

function startTunnel(
  data: TunnelThreadData,
  onRefused: (error: TlsError) => void = () => {},
  onBroken: () => void = () => {},
): TunnelThread {
  const worker = startThread(new URL('./tunnel-thread.js', import.meta.url), 'farfault tls', data)
  const order = (message: TunnelOrder): void => worker.postMessage(message)
  let lost: Error | undefined
  const followed = followThread<TunnelThreadMessage>(worker, (message) => {
    if ('refused' in message) return onRefused(errorFromMessage(message.refused) as TlsError)
    lost = errorFromMessage(message.lost)
    order('noted')
  })
  const ended = followed.catch((cause: Error) => {
    lost ??= new ChannelError(`the TLS thread broke: ${cause.message}`, { cause })
    onBroken()
  })
  return {
    order,
    reasonFor: (error) => (error instanceof ChannelError ? (lost ?? error) : error),
    ended() {
      order('end')
      return ended
    },
  }
}
