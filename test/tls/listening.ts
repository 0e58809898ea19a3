// A receiver that takes only who proves who it is, and a note of whom it turned away.

import type { TestContext } from 'node:test'
import { type Incoming, receive, startGuest, type TlsError } from '../../src/index.js'

export interface Listening {
  readonly incoming: Incoming
  readonly refused: readonly TlsError[]
  readonly port: number
}

/** @param module the guest that is made for who comes */
export function listenOverTls(t: TestContext, directory: string, module: 'pattern' | 'ram'): Listening {
  const refused: TlsError[] = []
  const incoming = receive({
    listen: 'tcp:127.0.0.1:0',
    tls: { directory, onRefused: (error) => refused.push(error) },
    guest: (machine, blocks) => startGuest({ module, incoming: { machine, blocks } }),
  })
  t.after(() => incoming.cancel())
  return { incoming, refused, port: Number(/\d+$/.exec(incoming.uri)![0]) }
}
