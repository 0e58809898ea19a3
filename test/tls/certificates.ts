// Certificates and keys for tests, made by openssl: directories as QEMU's tls-creds objects want them.

import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

export interface CertificateOptions {
  /** `DNS:` and `IP:` names of the server; default this host. */
  readonly names?: string
  /** Validity of the end's certificate, from now; negative: it has expired. */
  readonly days?: number
  readonly usage?: 'serverAuth' | 'clientAuth'
}

export interface Authority {
  readonly directory: string
}

/** A CA of its own. */
export function makeAuthority(directory: string): Authority {
  mkdirSync(directory, { recursive: true })
  openssl(directory, [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'],
    ...['-keyout', 'ca-key.pem', '-out', 'ca-cert.pem', '-subj', '/CN=farfault test CA'],
    ...['-addext', 'keyUsage=critical,keyCertSign,cRLSign'],
  ])
  return { directory }
}

/** A directory for one end, or with both roles for two. @returns the directory */
export function issue(
  { directory: authority }: Authority,
  directory: string,
  roles: readonly ('client' | 'server')[],
  { names = 'DNS:localhost,IP:127.0.0.1,IP:::1', days = 1, usage }: CertificateOptions = {},
): string {
  mkdirSync(directory, { recursive: true })
  copyFileSync(join(authority, 'ca-cert.pem'), join(directory, 'ca-cert.pem'))
  for (const role of roles) {
    writeFileSync(
      join(directory, `${role}.ext`),
      [
        'basicConstraints=critical,CA:FALSE',
        'keyUsage=critical,digitalSignature,keyEncipherment', // QEMU 10.0 insists on the latter
        `extendedKeyUsage=${usage ?? `${role}Auth`}`,
        ...(role === 'server' ? [`subjectAltName=${names}`] : []),
      ].join('\n'),
    )
    openssl(directory, [
      ...['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
      ...['-keyout', `${role}-key.pem`, '-out', `${role}.csr`, '-subj', `/CN=test ${role}`],
    ])
    openssl(directory, [
      ...['x509', '-req', '-in', `${role}.csr`, '-out', `${role}-cert.pem`, '-days', String(days)],
      ...['-CA', join(authority, 'ca-cert.pem'), '-CAkey', join(authority, 'ca-key.pem')],
      ...['-CAcreateserial', '-extfile', `${role}.ext`],
    ])
  }
  return directory
}

/** A directory with `keys.psk`. @returns the directory */
export function writeKeys(directory: string, keys: Readonly<Record<string, string>>): string {
  mkdirSync(directory, { recursive: true })
  const lines = Object.entries(keys).map(([user, key]) => `${user}:${key}\n`)
  writeFileSync(join(directory, 'keys.psk'), lines.join(''))
  return directory
}

/** A list that revokes the certificate of `role` in `directory`. */
export function revoke(
  { directory: authority }: Authority,
  directory: string,
  role: 'client' | 'server',
): void {
  writeFileSync(join(authority, 'index.txt'), '')
  writeFileSync(
    join(authority, 'ca.conf'),
    '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=1\n',
  )
  const signer = ['ca', '-config', 'ca.conf', '-cert', 'ca-cert.pem', '-keyfile', 'ca-key.pem']
  openssl(authority, [...signer, '-revoke', join(directory, `${role}-cert.pem`)])
  openssl(authority, [...signer, '-gencrl', '-out', 'ca-crl.pem'])
}

function openssl(cwd: string, args: readonly string[]): void {
  execFileSync('openssl', args, { cwd, stdio: ['ignore', 'ignore', 'pipe'], timeout: 30_000 })
}
