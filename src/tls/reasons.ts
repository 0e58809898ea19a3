// Why a TLS connection was not made, in plain words. Tables of what OpenSSL and Node call it. Pure; any thread.

import { TlsError } from '../errors.js'

/** `reason` of a `TlsError`: what is wrong with the peer, or what it finds wrong with us. */
export const REASONS = {
  'plain-text': 'it speaks no TLS',
  'no-certificate': 'it showed no certificate',
  untrusted: 'its certificate is not signed by the CA in ca-cert.pem',
  expired: 'its certificate has expired',
  'not-yet-valid': 'its certificate is not valid yet',
  revoked: 'its certificate is revoked in ca-crl.pem',
  purpose: 'its certificate is not made for this side of a connection (extended key usage)',
  hostname: 'its certificate is for another host',
  'revocation-list':
    'ca-crl.pem does not say whether its certificate is revoked: it has expired, or is of another CA',
  'wrong-key': 'its pre-shared key is not the one in keys.psk',
  'unknown-user': 'keys.psk has no key for the user that it named',
  'no-key': 'it did not prove that it has a pre-shared key',
  version: 'it knows no TLS 1.3',
  refused: 'it refused',
  closed:
    'it ended the connection during the handshake: it speaks no TLS, or does not accept our certificate or key',
  silent: 'it has said nothing since it was connected',
  timeout: 'it did not end the handshake in time',
  broken: 'the encrypted connection broke',
} as const satisfies Record<string, string>

export type TlsReason = keyof typeof REASONS

/** Results of the verification of a certificate, and error codes of a handshake. */
const CODES: Readonly<Record<string, TlsReason>> = {
  UNABLE_TO_GET_ISSUER_CERT: 'untrusted',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'untrusted',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'untrusted',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'untrusted',
  SELF_SIGNED_CERT_IN_CHAIN: 'untrusted',
  CERT_SIGNATURE_FAILURE: 'untrusted',
  CERT_UNTRUSTED: 'untrusted',
  CERT_REJECTED: 'untrusted',
  CERT_CHAIN_TOO_LONG: 'untrusted',
  INVALID_CA: 'untrusted',
  CERT_HAS_EXPIRED: 'expired',
  CERT_NOT_YET_VALID: 'not-yet-valid',
  CERT_REVOKED: 'revoked',
  INVALID_PURPOSE: 'purpose',
  UNABLE_TO_GET_CRL: 'revocation-list',
  CRL_HAS_EXPIRED: 'revocation-list',
  CRL_NOT_YET_VALID: 'revocation-list',
  CRL_SIGNATURE_FAILURE: 'revocation-list',
  ERR_TLS_CERT_ALTNAME_INVALID: 'hostname',
  ERR_TLS_HANDSHAKE_TIMEOUT: 'timeout',
  ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE: 'no-certificate',
  ERR_SSL_BINDER_DOES_NOT_VERIFY: 'wrong-key',
  ERR_SSL_WRONG_VERSION_NUMBER: 'plain-text',
  ERR_SSL_HTTP_REQUEST: 'plain-text',
  ERR_SSL_PACKET_LENGTH_TOO_LONG: 'plain-text',
  ERR_SSL_UNSUPPORTED_PROTOCOL: 'version',
  ECONNRESET: 'closed',
  EPIPE: 'closed',
}

/** Alerts: what a peer says when it refuses us. */
const ALERTS: Readonly<Record<string, string>> = {
  UNKNOWN_CA: 'our certificate is not signed by a CA that it trusts',
  CERTIFICATE_REQUIRED: 'it wants a certificate from us, and we have none (client-cert.pem, client-key.pem)',
  BAD_CERTIFICATE: 'our certificate does not fit',
  CERTIFICATE_EXPIRED: 'our certificate has expired',
  CERTIFICATE_REVOKED: 'our certificate is revoked',
  CERTIFICATE_UNKNOWN: 'it does not accept our certificate',
  UNSUPPORTED_CERTIFICATE: 'our certificate is not made for this side of a connection',
  ACCESS_DENIED: 'our certificate is none that it lets in',
  UNKNOWN_PSK_IDENTITY: 'it has no pre-shared key for our user',
  DECRYPT_ERROR: 'our pre-shared key, or the signature of our certificate, is wrong',
  ILLEGAL_PARAMETER: 'our pre-shared key is not the one that it has',
  HANDSHAKE_FAILURE:
    'we have nothing in common: a certificate on one side and a pre-shared key on the other, or another user',
  PROTOCOL_VERSION: 'it knows no TLS 1.3',
}

/** The other side's check of a certificate can come behind the handshake, and not every peer says that it failed. */
const CLOSED_BEHIND_HANDSHAKE =
  'it closed the connection right behind the handshake: it does not accept our certificate, or our name, most probably'

/** What Node makes of a failed handshake. */
export interface TlsFailure {
  readonly code?: string
  readonly message?: string
}

/** @param known what the caller knows better than the code of the failure says. */
export function tlsError(peer: string, failure: TlsFailure, known?: TlsReason): TlsError {
  const code = failure.code ?? ''
  const alert = /^ERR_SSL_(?:TLSV1|TLSV13|SSLV3)_ALERT_(\w+)$/.exec(code)?.[1]
  const reason = known ?? (alert === undefined ? (CODES[code] ?? 'closed') : 'refused')
  return new TlsError(reason, `${peer}: ${sentence(reason, alert, failure)}`, { cause: failure })
}

function sentence(reason: TlsReason, alert: string | undefined, { code, message }: TlsFailure): string {
  if (reason === 'refused') {
    if (alert === undefined) return CLOSED_BEHIND_HANDSHAKE
    return `${REASONS.refused} us: ${ALERTS[alert] ?? `TLS alert ${alert.toLowerCase()}`}`
  }
  if (reason === 'hostname' && message !== undefined) return `${REASONS.hostname} (${message})`
  const isKnown = code === undefined || code in CODES
  return isKnown ? REASONS[reason] : `${REASONS[reason]} (${code})`
}
