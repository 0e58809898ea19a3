// A process that ends in the middle of a migration between two guests of its own. Run by exit.test.ts.

import { setTimeout as sleep } from 'node:timers/promises'
import { begin, MiB, startPattern, status } from './guests.js'

const phase = process.argv[2]!
const guest = await startPattern()
const { migration, incoming } = begin(guest, 'pattern', {
  postcopy: phase === 'precopy' ? 'auto' : 'now',
  maxBandwidth: 2 * MiB,
  maxPostcopyBandwidth: 1 * MiB,
})
await status(migration, phase === 'precopy' ? 'active' : 'postcopy-active')
if (phase === 'postcopy') while (incoming.stats.requests === 0) await sleep(1)
console.log('under way')
process.exit(4)
