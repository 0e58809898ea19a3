// A recording relay between two QEMUs: source → relay → destination, every byte of both directions kept in order.

import { connect, createServer, type Socket } from 'node:net'

/** One connection that went through, as far as it went. */
export interface Recording {
  /** Source → destination: the migration stream. */
  readonly forward: Buffer[]
  /** Destination → source: the return path. */
  readonly back: Buffer[]
}

export interface Relay {
  /** Connections in the order in which they were accepted. */
  readonly recordings: readonly Recording[]
  /** Bytes of all forward directions so far. */
  forwardBytes(): number
  /** Break every connection, as a network would; new ones are accepted still. */
  cut(): void
  close(): void
}

/** Listen on the unix socket `from`; each connection is passed on to the unix socket `to()`. */
export async function startRelay(from: string, to: () => string): Promise<Relay> {
  const recordings: Recording[] = []
  const sockets = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true }, (incoming) => {
    const recording = { forward: [], back: [] }
    recordings.push(recording)
    const outgoing = connect({ path: to(), allowHalfOpen: true })
    pass(incoming, outgoing, recording.forward)
    pass(outgoing, incoming, recording.back)
  })

  function pass(source: Socket, destination: Socket, kept: Buffer[]): void {
    sockets.add(source)
    source.on('data', (chunk) => {
      kept.push(chunk)
      // A peer that does not read must be felt by the other one: QEMU's pacing depends on it.
      if (!destination.write(chunk)) source.pause()
    })
    destination.on('drain', () => source.resume())
    source.on('end', () => destination.end())
    source.on('error', () => destination.destroy())
    source.on('close', () => sockets.delete(source))
  }

  const cut = () => {
    for (const socket of sockets) socket.destroy()
  }
  await new Promise<void>((resolve, reject) => {
    server.on('error', reject)
    server.listen(from, resolve)
  })
  return {
    recordings,
    forwardBytes: () =>
      recordings.flatMap(({ forward }) => forward).reduce((sum, chunk) => sum + chunk.length, 0),
    cut,
    close() {
      cut()
      server.close()
    },
  }
}
