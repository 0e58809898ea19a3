// Downtime: an emulated PC that writes to all of the RAM it uses is moved between two processes while it runs. From its
// last instruction here to its first there. Does it grow with the size of RAM?

import type { Benchmark, Sample, Variant } from './benchmark.js'
import { nodeChild, runForJson, start } from './programs.js'

const MODES = ['now', 'auto'] as const
const SIZES = [
  { name: '128 MiB', mebibytes: 128 },
  { name: '1 GiB', mebibytes: 1024 },
] as const

interface Report {
  readonly ok: boolean
  readonly downtimeMs: number
  readonly totalMs: number
}

async function move(mode: string, mebibytes: number): Promise<Sample> {
  const destination = start(nodeChild('downtime.child', 'receive'))
  const uri = await destination.line()
  const source = await runForJson<Report>(
    nodeChild('downtime.child', 'migrate', uri, mode, String(mebibytes)),
  )
  const { downtimeMs } = JSON.parse(await destination.line()) as Report
  await destination.ended
  return { downtime: downtimeMs, total: source.totalMs }
}

const variants: readonly Variant[] = MODES.flatMap((mode) =>
  SIZES.map(({ name, mebibytes }) => ({ name: `${mode}, ${name}`, run: () => move(mode, mebibytes) })),
)

export const downtime: Benchmark = {
  name: 'downtime',
  about: 'a running v86 guest that writes to nearly all of its RAM, moved by postcopy to another process',
  rounds: 7,
  metrics: [
    { name: 'downtime', unit: 'ms' },
    { name: 'total', unit: 'ms' },
  ],
  variants,
  ratios: MODES.map((mode) => [`${mode}, ${SIZES[1].name}`, `${mode}, ${SIZES[0].name}`]),
}
