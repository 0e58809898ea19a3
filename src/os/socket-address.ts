// Socket addresses as the kernel wants them, and host names turned into them. Any thread; a name that must be asked
// of a server blocks the thread until it is answered.

import { ChannelError } from '../errors.js'
import { libc } from './libc.js'
import {
  ADDRINFO,
  LINUX,
  SOCKADDR_IN_ADDRESS_AT,
  SOCKADDR_IN6_ADDRESS_AT,
  SOCKADDR_PORT_AT,
  SOCKADDR_STORAGE_BYTES,
  SOCKADDR_UN_PATH,
} from './linux-abi.js'
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
  const name = boundName(fd)
  return name === undefined ? undefined : (name[SOCKADDR_PORT_AT]! << 8) | name[SOCKADDR_PORT_AT + 1]!
}

/** Whether nobody can reach the socket from another host: it is no TCP socket, or its address is 127.x.y.z or ::1. */
export function isBoundToLoopback(fd: number): boolean {
  const name = boundName(fd)
  if (name === undefined) return true
  if (familyOf(name) === LINUX.AF_INET) return name[SOCKADDR_IN_ADDRESS_AT] === 127
  const address = name.subarray(SOCKADDR_IN6_ADDRESS_AT, SOCKADDR_IN6_ADDRESS_AT + 16)
  const isMapped = address.subarray(0, 10).every((byte) => byte === 0) && address[10] === 0xff
  return isMapped ? address[12] === 127 : address.every((byte, i) => byte === (i === 15 ? 1 : 0))
}

const familyOf = (name: Uint8Array): number => name[0]! | (name[1]! << 8)

/** A struct sockaddr_in or sockaddr_in6; undefined for sockets of other families. */
function boundName(fd: number): Uint8Array | undefined {
  const name = nativeBuffer(SOCKADDR_STORAGE_BYTES)
  const length = nativeBuffer(8)
  setU64(length.words, 0, SOCKADDR_STORAGE_BYTES)
  if (libc().getsockname(fd, name.address, length.address) === -1) return undefined
  const family = familyOf(name.bytes)
  return family === LINUX.AF_INET || family === LINUX.AF_INET6 ? name.bytes : undefined
}
