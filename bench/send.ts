// Send rate: guest RAM over TCP on this host to a C program that throws it away. The engine sends its first precopy pass;
// the C sender sends the same records with the same iovecs. Measured by the sink.

import { encodeCommand } from '../src/wire/messages.js'
import type { Benchmark, Sample } from './benchmark.js'
import { cProgram, inputFile, nodeChild, withRunning } from './programs.js'

const PAGES = 131_072
const GiB = 2 ** 30
/** The engine's PING whose PONG says that RAM is ready (source/outgoing.ts). */
const READY = 5

async function measure(sender: (port: string) => readonly string[]): Promise<Sample> {
  return withRunning([cProgram('sink'), String(READY)], async (sink) =>
    withRunning(sender(await sink.line()), async () => {
      const { ns, bytes } = JSON.parse(await sink.line()) as { ns: number; bytes: number }
      return { rate: bytes / GiB / (ns / 1e9) }
    }),
  )
}

function cSender(port: string): readonly string[] {
  const prefix = inputFile('ping', encodeCommand({ name: 'PING', value: READY }))
  const answers = '1'
  const suffix = '/dev/null'
  return [cProgram('stream-sender'), port, String(PAGES), answers, prefix, suffix]
}

export const send: Benchmark = {
  name: 'send',
  about: `${(PAGES * 4096) / 2 ** 20} MiB of guest RAM as page records over TCP to a C sink`,
  rounds: 9,
  metrics: [{ name: 'rate', unit: 'GiB/s' }],
  variants: [
    { name: 'c', run: () => measure(cSender) },
    { name: 'engine', run: () => measure((port) => nodeChild('send.child', port, String(PAGES))) },
  ],
  ratios: [['engine', 'c']],
}
