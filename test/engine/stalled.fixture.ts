// A process whose guest waits for a page that never comes; then it ends in the way its argument says.
// Run by exit.test.ts.

import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { receive, startGuest } from '../../src/index.js'
import { baseStreams } from './base-streams.js'
import { upToPackage } from './guests.js'

const incoming = receive({
  listen: 'tcp:127.0.0.1:0',
  guest: (machine, blocks) => startGuest({ module: 'ram', incoming: { machine, blocks } }),
})
const socket = connect(Number(incoming.uri.split(':').at(-1)), '127.0.0.1')
socket.on('error', () => {})
socket.write(upToPackage(baseStreams([{ name: 'a', length: 1 << 20, pageSize: 4096 }])))
while (incoming.stats.requests === 0) await sleep(1)
console.log('stalled')

const WAYS: Readonly<Record<string, () => void>> = {
  exit: () => process.exit(3),
  throw: () => setImmediate(() => assertNever()),
  reject: () => void Promise.reject(new Error('nobody handles this')),
}
WAYS[process.argv[2]!]!()

function assertNever(): void {
  throw new Error('nobody catches this')
}
