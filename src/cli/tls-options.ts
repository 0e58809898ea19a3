// TLS on the command line: the options of commands that listen and of commands that connect, and what the library gets.
// Pure, but for the line that says who was refused.

import { type TlsError, UsageError } from '../errors.js'
import type { TlsConnectOptions, TlsListenOptions } from '../index.js'
import { flag, optional, type Values } from './options.js'
import { text } from './values.js'

const DIRECTORY_HELP =
  'TLS 1.3 on tcp:, both ends authenticated; DIR has ca-cert.pem and certificates with keys, or keys.psk, as for QEMU'

export const TLS_LISTEN_OPTIONS = {
  'tls-dir': optional('DIR', text, DIRECTORY_HELP),
  insecure: flag('without TLS: listen where other hosts can connect, and believe whoever does'),
} as const

export const TLS_CONNECT_OPTIONS = {
  'tls-dir': optional('DIR', text, DIRECTORY_HELP),
  'tls-hostname': optional(
    'NAME',
    text,
    "what the server's certificate must be for, if not the host in the URI",
  ),
  'tls-user': optional('NAME', text, 'whose key of keys.psk is used; qemu unless given'),
} as const

export const TLS_NOTE =
  'DIR of --tls-dir: with keys.psk (lines of USER:HEXKEY) pre-shared keys are used; otherwise certificates (x509): ca-cert.pem, ' +
  'for a listener server-cert.pem and server-key.pem, for who connects client-cert.pem and client-key.pem, and ca-crl.pem if ' +
  "there is one. QEMU's objects tls-creds-x509 and tls-creds-psk take the same directory. A listener always wants a certificate " +
  'of the other side, signed by that CA.'

type ListenValues = Values<typeof TLS_LISTEN_OPTIONS>
type ConnectValues = Values<typeof TLS_CONNECT_OPTIONS>

/** Whoever is turned away is a line on standard error: the listener goes on. @throws UsageError */
export function listenSecurity(values: ListenValues): { tls?: TlsListenOptions; insecure: boolean } {
  const { 'tls-dir': directory, insecure } = values
  if (insecure && directory !== undefined) throw new UsageError('--insecure goes without --tls-dir')
  const onRefused = (error: TlsError): void =>
    void process.stderr.write(`farfault: refused: ${error.message}\n`)
  return { insecure, ...(directory === undefined ? {} : { tls: { directory, onRefused } }) }
}

/** @throws UsageError for a name without TLS */
export function connectSecurity(values: ConnectValues): { tls?: TlsConnectOptions } {
  const { 'tls-dir': directory, 'tls-hostname': hostname, 'tls-user': username } = values
  if (directory === undefined) {
    if ((hostname ?? username) !== undefined) throw new UsageError(`${NAMES} need --tls-dir DIR`)
    return {}
  }
  const names = {
    ...(hostname === undefined ? {} : { hostname }),
    ...(username === undefined ? {} : { username }),
  }
  return { tls: { directory, ...names } }
}

const NAMES = '--tls-hostname and --tls-user'
