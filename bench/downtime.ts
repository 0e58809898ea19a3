// Downtime: an emulated PC that writes all the time is moved between two processes while it runs. From its last
// instruction here to its first there. Does it grow with the size of RAM?

import type { Benchmark, Sample } from './benchmark.js'
import { nodeChild, runForJson, withRunning } from './programs.js'

const MODES = ['now', 'auto'] as const

/** Its program writes to RAM from 1 MiB to `writtenMiB`, again and again. */
interface Size {
  readonly mebibytes: number
  readonly writtenMiB: number
}
interface Named extends Size {
  readonly name: string
}
const SMALL: Named = { name: '128 MiB', mebibytes: 128, writtenMiB: 100 }
const LARGE: Named = { name: '1 GiB', mebibytes: 1024, writtenMiB: 100 }
/** Not only the RAM is larger, but also what the guest keeps changing. */
const LARGE_WRITTEN: Named = { name: '1 GiB written', mebibytes: 1024, writtenMiB: 1000 }

interface Report {
  readonly ok: boolean
  readonly downtimeMs: number
  readonly blocktimeMs: number
  readonly totalMs: number
}

/** Two processes: one for each end. */
export async function moveV86(mode: string, size: Size): Promise<Sample> {
  const sizes = [size.mebibytes, size.writtenMiB].map(String)
  return withRunning(nodeChild('downtime.child', 'receive'), async (destination) => {
    const uri = await destination.line()
    const source = await runForJson<Report>(nodeChild('downtime.child', 'migrate', uri, mode, ...sizes))
    const { downtimeMs, blocktimeMs } = JSON.parse(await destination.line()) as Report
    return { downtime: downtimeMs, blocktime: blocktimeMs, total: source.totalMs }
  })
}

const variant = (mode: string, size: Named) => ({
  name: `${mode}, ${size.name}`,
  run: () => moveV86(mode, size),
})

export const downtime: Benchmark = {
  name: 'downtime',
  about:
    'a running v86 guest that writes to 100 MiB of its RAM all the time, moved by postcopy to another process; auto: precopy with 32 MiB/s first, less than the guest writes',
  rounds: 5,
  metrics: [
    { name: 'downtime', unit: 'ms' },
    { name: 'total', unit: 'ms' },
  ],
  variants: [
    ...MODES.flatMap((mode) => [variant(mode, SMALL), variant(mode, LARGE)]),
    variant('now', LARGE_WRITTEN),
  ],
  ratios: MODES.map((mode) => [`${mode}, ${LARGE.name}`, `${mode}, ${SMALL.name}`]),
}
