// TLS handshakes of both roles. A socket comes out only when its peer has proved who it is. Tunnel thread.
//
// TLS 1.3 alone. The migration source is the client, as in QEMU. Sessions are never resumed: what was proved once is
// proved again on every connection.

import { constants } from 'node:crypto'
import { isIP, type Socket } from 'node:net'
import {
  checkServerIdentity,
  connect,
  createServer,
  type PeerCertificate,
  type TLSSocket,
  type TlsOptions,
} from 'node:tls'
import type { TlsError } from '../errors.js'
import { LIMITS } from '../limits.js'
import type { Credentials, X509Credentials } from './credentials.js'
import { type TlsFailure, type TlsReason, tlsError } from './reasons.js'

const COMMON = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } as const
/** A key from outside of TLS goes with SHA-256, so with this one. */
const PSK_CIPHER = 'TLS_AES_128_GCM_SHA256'
/** First byte of a TLS record that holds a handshake. */
const HANDSHAKE_RECORD = 0x16

const x509Context = ({ ca, crl, cert, key }: X509Credentials) => ({
  ca,
  ...(crl === undefined ? {} : { crl }),
  ...(cert === undefined ? {} : { cert }),
  ...(key === undefined ? {} : { key }),
})

const hasCertificate = (socket: TLSSocket): boolean =>
  Object.keys(socket.getPeerCertificate() ?? {}).length > 0

/**
 * @param raw just accepted, and not half open: whoever ends it now is gone.
 * @param peer for messages. Rejects with `TlsError`, in bounded time; the raw socket is gone then.
 */
export async function handshakeAsServer(
  raw: Socket,
  credentials: Credentials,
  peer: string,
): Promise<TLSSocket> {
  raw.on('error', ignore) // its end is seen by whoever reads it
  const refuse = (failure: TlsFailure, reason?: TlsReason): TlsError => {
    raw.destroy()
    return tlsError(peer, failure, reason)
  }
  const first = await firstByte(raw)
  if (typeof first === 'string') throw refuse({}, first)
  if (first !== HANDSHAKE_RECORD) throw refuse({}, 'plain-text')
  return new Promise((resolve, reject) => {
    /** Whether the user that the peer named has a key here; undefined when it named none. */
    let userIsKnown: boolean | undefined
    const server = createServer({
      ...serverOptions(credentials, (known) => {
        userIsKnown = known
      }),
      ...COMMON,
      secureOptions: constants.SSL_OP_NO_TICKET,
      handshakeTimeout: LIMITS.tlsHandshakeMs,
    })
    server.on('tlsClientError', (error: TlsFailure, { authorizationError }) => {
      // Node says only that the socket hung up; why it was hung up stands beside it.
      const failure = authorizationError ? { code: String(authorizationError) } : error
      reject(refuse(failure, reasonOfServer(credentials.kind, userIsKnown, failure)))
    })
    server.on('secureConnection', (socket) => {
      const proved =
        credentials.kind === 'x509'
          ? socket.authorized && hasCertificate(socket) && !socket.isSessionReused()
          : userIsKnown === true && socket.isSessionReused() // a session from outside of TLS is what a key is
      if (!proved) return reject(refuse({}, credentials.kind === 'x509' ? 'no-certificate' : 'no-key'))
      resolve(handedOver(socket))
    })
    server.emit('connection', raw)
  })
}

const ignore = (): void => {}

/** From here on each direction has its own end. What goes wrong before somebody listens is in `errored`. */
function handedOver(socket: TLSSocket): TLSSocket {
  socket.allowHalfOpen = true
  return socket.on('error', ignore)
}

function serverOptions(credentials: Credentials, onUser: (isKnown: boolean) => void): TlsOptions {
  if (credentials.kind === 'x509')
    return { ...x509Context(credentials), requestCert: true, rejectUnauthorized: true }
  const { keys } = credentials
  return {
    ciphers: PSK_CIPHER,
    pskCallback(_, user) {
      const key = Object.hasOwn(keys, user) ? keys[user] : undefined
      onUser(key !== undefined)
      return key === undefined ? null : Buffer.from(key, 'hex')
    },
  }
}

function reasonOfServer(
  kind: Credentials['kind'],
  userIsKnown: boolean | undefined,
  { code = '' }: TlsFailure,
): TlsReason | undefined {
  if (kind === 'x509' || !code.startsWith('ERR_SSL') || /ALERT|PROTOCOL|BINDER/.test(code)) return undefined
  return userIsKnown === false ? 'unknown-user' : userIsKnown === undefined ? 'no-key' : undefined
}

/** The first byte that comes, which stays to be read. A peer that sends only a few would keep TLS waiting for more. */
function firstByte(raw: Socket): Promise<number | 'closed' | 'silent'> {
  return new Promise((resolve) => {
    const tell = (first: number | 'closed' | 'silent'): void => {
      stopListening()
      raw.off('readable', look)
      resolve(first)
    }
    const look = (): void => {
      const chunk = raw.read() as Buffer | null
      if (chunk === null) return // the end, which has an event of its own
      raw.unshift(chunk)
      tell(chunk[0]!)
    }
    const stopListening = whenSilent(raw, () => tell('silent'))
    raw.on('readable', look)
    raw.once('end', () => tell('closed'))
    raw.once('close', () => tell('closed'))
  })
}

/**
 * Calls `onSilent` unless something comes in time. @returns a function that gives up waiting.
 */
function whenSilent(raw: Socket, onSilent: () => void): () => void {
  const look = (): void => {
    if (raw.bytesRead === 0) onSilent()
  }
  // When this thread is late, what has come meanwhile is read after the timer and before an immediate.
  let immediate: NodeJS.Immediate | undefined
  const timer = setTimeout(() => {
    immediate = setImmediate(look)
  }, LIMITS.tlsFirstByteMs)
  return () => {
    clearTimeout(timer)
    clearImmediate(immediate)
  }
}

export interface ClientIdentity {
  readonly credentials: Credentials
  /** What the server's certificate must be for. */
  readonly hostname: string
  /** Whose key it is, with pre-shared keys. */
  readonly username: string
}

/** @param raw connected, and not half open. @param peer for messages. Rejects with `TlsError`; the raw socket is gone then. */
export function handshakeAsClient(raw: Socket, identity: ClientIdentity, peer: string): Promise<TLSSocket> {
  const { kind } = identity.credentials
  return new Promise((resolve, reject) => {
    raw.on('error', ignore)
    const socket = connect({ ...COMMON, ...clientOptions(identity), socket: raw })
    const stopTimers = (): void => {
      clearTimeout(timer)
      stopListening()
    }
    const refuse = (failure: TlsFailure, reason?: TlsReason): void => {
      stopTimers()
      socket.destroy()
      reject(tlsError(peer, failure, reason))
    }
    const timer = setTimeout(() => refuse({}, 'timeout'), LIMITS.tlsHandshakeMs)
    const stopListening = whenSilent(raw, () => refuse({}, 'silent'))
    socket.on('error', (error: TlsFailure) => refuse(error, reasonOfClient(kind, error)))
    socket.on('close', () => refuse({}, 'closed'))
    socket.on('secureConnect', () => {
      // With a pre-shared key no certificate is shown, and a reused session means that the key was the right one.
      const proved =
        kind === 'x509' ? hasCertificate(socket) : socket.isSessionReused() && !hasCertificate(socket)
      if (!socket.authorized || !proved) return refuse({}, kind === 'x509' ? 'no-certificate' : 'no-key')
      stopTimers()
      resolve(handedOver(socket))
    })
  })
}

function clientOptions({ credentials, hostname, username }: ClientIdentity) {
  if (credentials.kind === 'x509') {
    return {
      ...x509Context(credentials),
      servername: isIP(hostname) === 0 ? hostname : '',
      rejectUnauthorized: true,
      checkServerIdentity: (_: string, certificate: PeerCertificate) =>
        checkServerIdentity(hostname, certificate),
    }
  }
  const key = credentials.keys[username] ?? ''
  return {
    ca: [],
    ciphers: PSK_CIPHER,
    rejectUnauthorized: true,
    pskCallback: () => ({ psk: Buffer.from(key, 'hex'), identity: username }),
    checkServerIdentity: () => new Error('a certificate instead of a pre-shared key'),
  }
}

/** Whatever a certificate is like: with pre-shared keys there should be none. */
function reasonOfClient(kind: Credentials['kind'], { code = '' }: TlsFailure): TlsReason | undefined {
  if (kind === 'x509' || code.startsWith('ERR_SSL') || code === 'ECONNRESET') return undefined
  return 'no-key'
}
