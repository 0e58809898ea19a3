// Where a migration stream comes from or goes to, as QEMU writes it: tcp:HOST:PORT, unix:PATH, fd:N. Pure; any thread.

import { UsageError } from '../errors.js'
import { SOCKADDR_UN_PATH } from './linux-abi.js'

export type ChannelUri =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'fd'; readonly fd: number }

/** A path ends with a NUL in struct sockaddr_un. */
const UNIX_PATH_BYTES_MAX = SOCKADDR_UN_PATH.size - 1

/** IPv6 addresses stand in brackets: `tcp:[::1]:4444`. An empty host means every address of this host. */
export function parseUri(text: string): ChannelUri {
  const [, scheme, rest] = /^(tcp|unix|fd):(.*)$/s.exec(text) ?? []
  if (scheme === 'tcp') return parseTcp(text, rest!)
  if (scheme === 'unix') return parseUnix(text, rest!)
  if (scheme === 'fd') return parseFd(text, rest!)
  throw new UsageError(`"${text}" is not a channel; use tcp:HOST:PORT, unix:PATH or fd:NUMBER`)
}

function parseTcp(text: string, rest: string): ChannelUri {
  const [, v6, name, port] = /^(?:\[([0-9a-fA-F:.%\w]+)\]|([^[\]:\s]*)):(\d{1,5})$/.exec(rest) ?? []
  if (port === undefined || Number(port) > 65_535) {
    throw new UsageError(`"${text}" is not tcp:HOST:PORT (IPv6: tcp:[ADDRESS]:PORT, port 0 to 65535)`)
  }
  return { kind: 'tcp', host: v6 ?? name!, port: Number(port) }
}

function parseUnix(text: string, path: string): ChannelUri {
  if (path === '' || path.includes('\0')) throw new UsageError(`"${text}" names no path`)
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
    throw new UsageError(`"${text}": a socket's path may have ${UNIX_PATH_BYTES_MAX} bytes`)
  }
  return { kind: 'unix', path }
}

function parseFd(text: string, rest: string): ChannelUri {
  if (!/^\d{1,9}$/.test(rest)) throw new UsageError(`"${text}" is not fd:NUMBER`)
  return { kind: 'fd', fd: Number(rest) }
}

/** The inverse of `parseUri`. */
export function formatUri(uri: ChannelUri): string {
  if (uri.kind === 'unix') return `unix:${uri.path}`
  if (uri.kind === 'fd') return `fd:${uri.fd}`
  return `tcp:${uri.host.includes(':') ? `[${uri.host}]` : uri.host}:${uri.port}`
}
