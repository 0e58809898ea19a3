// A receiver that takes only who proves who it is, and a note of whom it turned away.

import { createServer } from 'node:net'
import type { TestContext } from 'node:test'
import { type Incoming, receive, startGuest, type TlsError } from '../../src/index.js'

export interface Listening {
  readonly incoming: Incoming
  readonly refused: readonly TlsError[]
  readonly port: number
}

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
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
