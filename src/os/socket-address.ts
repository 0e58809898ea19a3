// Socket addresses as the kernel wants them, and host names turned into them. Any thread; a name that must be asked
// of a server blocks the thread until it is answered.

import { ChannelError } from '../errors.js'
import { libc } from './libc.js'
import { ADDRINFO, LINUX, SOCKADDR_PORT_AT, SOCKADDR_STORAGE_BYTES, SOCKADDR_UN_PATH } from './linux-abi.js'
import { getU64, memcpy, type NativeBuffer, nativeBuffer, setU64 } from './memory.js'
import { type ChannelUri, formatUri } from './uri.js'

export interface SocketAddress {
  readonly family: number
  /** A struct sockaddr_in, sockaddr_in6 or sockaddr_un. */
  readonly buffer: NativeBuffer
  /** Bytes in use. */
  readonly length: number
}

/** All addresses for a URI, best first. @throws ChannelError if the name does not resolve. */
export function resolve(uri: ChannelUri & { kind: 'tcp' | 'unix' }, passive: boolean): SocketAddress[] {
  return uri.kind === 'unix' ? [unixAddress(uri.path)] : tcpAddresses(uri.host, uri.port, passive)
}

function unixAddress(path: string): SocketAddress {
  const buffer = nativeBuffer(SOCKADDR_UN_PATH.at + SOCKADDR_UN_PATH.size)
  buffer.bytes[0] = LINUX.AF_UNIX
  const { written } = new TextEncoder().encodeInto(path, buffer.bytes.subarray(SOCKADDR_UN_PATH.at))
  return { family: LINUX.AF_UNIX, buffer, length: SOCKADDR_UN_PATH.at + written + 1 }
}

const GAI_ERRORS: Readonly<Record<number, string>> = {
  [-2]: 'no such host',
  [-3]: 'the name server does not answer',
  [-4]: 'the name cannot be resolved',
  [-5]: 'no address for this name',
}

function tcpAddresses(host: string, port: number, passive: boolean): SocketAddress[] {
  const hints = nativeBuffer(ADDRINFO.size)
  hints.words[ADDRINFO.word.ai_flags] = passive ? LINUX.AI_PASSIVE : 0
  hints.words[ADDRINFO.word.ai_socktype] = LINUX.SOCK_STREAM
  const head = nativeBuffer(8)
  // No host: any address when listening, this host when connecting.
  const result = libc().getaddrinfo(host === '' ? null : host, String(port), hints.address, head.address)
  if (result !== 0) {
    const uri = formatUri({ kind: 'tcp', host, port })
    throw new ChannelError(`${uri}: ${GAI_ERRORS[result] ?? `name resolution failed (${result})`}`)
  }
  const first = getU64(head.words, 0)
  const addresses = copyAddresses(first)
  libc().freeaddrinfo(first)
  return addresses
}

function copyAddresses(first: number): SocketAddress[] {
  const addresses: SocketAddress[] = []
  const info = nativeBuffer(ADDRINFO.size)
  for (let next = first; next !== 0; next = getU64(info.words, ADDRINFO.word.ai_next)) {
    memcpy(info.address, next, ADDRINFO.size)
    const length = info.words[ADDRINFO.word.ai_addrlen]!
    const buffer = nativeBuffer(length)
    memcpy(buffer.address, getU64(info.words, ADDRINFO.word.ai_addr), length)
    addresses.push({ family: info.words[ADDRINFO.word.ai_family]!, buffer, length })
  }
  return addresses
}

/** The port that a TCP socket is bound to; undefined for other sockets. */
export function boundPort(fd: number): number | undefined {
  const name = nativeBuffer(SOCKADDR_STORAGE_BYTES)
  const length = nativeBuffer(8)
  setU64(length.words, 0, SOCKADDR_STORAGE_BYTES)
  if (libc().getsockname(fd, name.address, length.address) === -1) return undefined
  const family = name.bytes[0]! | (name.bytes[1]! << 8)
  if (family !== LINUX.AF_INET && family !== LINUX.AF_INET6) return undefined
  return (name.bytes[SOCKADDR_PORT_AT]! << 8) | name.bytes[SOCKADDR_PORT_AT + 1]!
}
