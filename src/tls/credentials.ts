// Who we are, and whom we believe: the files of a directory, under QEMU's names. One directory serves QEMU's tls-creds
// objects and farfault alike. Main thread: what is wrong with them is said before anything is started.

import { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import { UsageError } from '../errors.js'
import { LIMITS } from '../limits.js'

export type Endpoint = 'client' | 'server'

export interface X509Credentials {
  readonly kind: 'x509'
  readonly ca: string
  readonly crl?: string
  /** A client may have none: then it is up to the server. */
  readonly cert?: string
  readonly key?: string
}

export interface PskCredentials {
  readonly kind: 'psk'
  /** Name of a user: key, hexadecimal. */
  readonly keys: Readonly<Record<string, string>>
}

export type Credentials = X509Credentials | PskCredentials

const FILE = { psk: 'keys.psk', ca: 'ca-cert.pem', crl: 'ca-crl.pem' } as const

/**
 * `keys.psk` makes it pre-shared keys, `ca-cert.pem` certificates (x509); a directory with both says neither.
 * @throws UsageError that names the file
 */
export function loadCredentials(directory: string, endpoint: Endpoint): Credentials {
  const psk = readOptional(directory, FILE.psk)
  const ca = readOptional(directory, FILE.ca)
  if (psk !== undefined && ca !== undefined)
    throw new UsageError(
      `${directory} has both ${FILE.psk} and ${FILE.ca}: which of them is meant is not known`,
    )
  if (psk !== undefined) return { kind: 'psk', keys: parseKeys(psk, join(directory, FILE.psk)) }
  if (ca === undefined)
    throw new UsageError(`${directory} has no TLS credentials: neither ${FILE.ca} (x509) nor ${FILE.psk}`)
  return loadX509(directory, endpoint, ca)
}

function loadX509(directory: string, endpoint: Endpoint, ca: string): X509Credentials {
  const crl = readOptional(directory, FILE.crl)
  const [certFile, keyFile] = [`${endpoint}-cert.pem`, `${endpoint}-key.pem`]
  const cert = readOptional(directory, certFile)
  const key = readOptional(directory, keyFile)
  if ((cert === undefined) !== (key === undefined) || (endpoint === 'server' && cert === undefined)) {
    throw new UsageError(`${directory} has no ${cert === undefined ? certFile : keyFile}`)
  }
  assertValidNow(ca, join(directory, FILE.ca))
  if (cert !== undefined) assertValidNow(cert, join(directory, certFile))
  const own = cert === undefined || key === undefined ? {} : { cert, key }
  const credentials = { ca, ...(crl === undefined ? {} : { crl }), ...own }
  try {
    createSecureContext(credentials)
  } catch (error) {
    throw new UsageError(`the TLS credentials in ${directory} cannot be used: ${(error as Error).message}`)
  }
  return { kind: 'x509', ...credentials }
}

/** The peer would refuse it; here it can be said better. */
function assertValidNow(pem: string, path: string): void {
  let certificate: X509Certificate
  try {
    certificate = new X509Certificate(pem)
  } catch (error) {
    throw new UsageError(`${path} is no certificate in PEM form: ${(error as Error).message}`)
  }
  const now = Date.now()
  if (now > Date.parse(certificate.validTo))
    throw new UsageError(`${path} has expired: ${certificate.validTo}`)
  if (now < Date.parse(certificate.validFrom))
    throw new UsageError(`${path} is not valid before ${certificate.validFrom}`)
}

/** Lines of `user:key`, the key in hexadecimal, as `psktool` writes them. */
function parseKeys(text: string, path: string): Record<string, string> {
  const keys: Record<string, string> = Object.create(null)
  for (const [i, line] of text.split('\n').entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const [, user, key] = /^([^:]+):((?:[0-9a-fA-F]{2}){1,256})\s*$/.exec(line) ?? []
    if (key === undefined) throw new UsageError(`${path}, line ${i + 1}: not USER:KEY with a hexadecimal key`)
    keys[user!] = key
  }
  if (Object.keys(keys).length === 0) throw new UsageError(`${path} has no key`)
  return keys
}

function readOptional(directory: string, name: string): string | undefined {
  const path = join(directory, name)
  try {
    if (statSync(path).size > LIMITS.tlsFileBytesMax) throw new UsageError(`${path} is too large`)
    return readFileSync(path, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw error instanceof UsageError ? error : new UsageError(`${path} cannot be read (${code})`)
  }
}
