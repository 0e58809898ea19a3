// Joins an authenticated TLS connection to the descriptor that the engine has: bytes both ways, at the pace of whoever
// is slower, and each end of a direction passed on as such. Tunnel thread.

import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import type { TlsFailure } from './reasons.js'

/** What the engine is to hear instead of the bare end of its connection. Resolves when it has been told. */
export type OnLost = (failure: TlsFailure, silent: boolean) => Promise<void>

/**
 * Resolves when the TLS connection is closed. `silent` in `onLost`: nothing ever came from the peer.
 * @param onBytes is called when something has come.
 */
export function splice(inner: Socket, outer: TLSSocket, onLost: OnLost, onBytes: () => void): Promise<void> {
  let silent = true
  let lost = false
  const lose = async (failure: TlsFailure): Promise<void> => {
    if (lost) return
    lost = true
    await onLost(failure, silent)
  }
  if (outer.destroyed) return lose((outer.errored ?? {}) as TlsFailure).then(() => void inner.destroy())
  outer.on('data', () => {
    silent = false
    onBytes()
  })
  inner.pipe(outer)
  outer.pipe(inner, { end: false })

  outer.on('end', () => void (silent ? lose({}) : Promise.resolve()).then(() => inner.end()))
  outer.on('error', (error: TlsFailure) => void lose(error).then(() => inner.destroy()))
  inner.on('error', () => {}) // the engine has closed its end; seen as `close`
  inner.on('close', () => {
    // What the engine sent goes out; what still comes nobody wants.
    outer.unpipe(inner)
    outer.resume()
    outer.end()
  })
  return new Promise((resolve) => {
    outer.on('close', () => {
      if (!lost) inner.destroySoon()
      resolve()
    })
  })
}
