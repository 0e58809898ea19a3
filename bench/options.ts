// The command line of the benchmarks.

import { parseArgs } from 'node:util'
import { findQemus, type QemuBinary } from '../test/qemu/find.js'

export interface BenchOptions {
  /** Names; none means all. */
  readonly names: readonly string[]
  /** Instead of each benchmark's own. */
  readonly rounds: number | undefined
  /** Sizes of RAM, MiB; none means each benchmark's own. */
  readonly ramMiB: readonly number[]
  /** QEMU versions; none means all that are here. */
  readonly qemus: readonly string[]
  /** Guests, where there is a choice; none means all. */
  readonly guests: readonly string[]
  /** Only variants that have one of these in their name; none means all. */
  readonly only: readonly string[]
  /** A file that gets the JSON lines, behind what it has. */
  readonly save: string | undefined
  /** Only say what there is. */
  readonly help: boolean
}

export const usage = (names: readonly string[]): string =>
  [
    'npm run bench [-- NAME... OPTIONS]: runs the benchmarks named, or all, which takes hours',
    `  names: ${names.join(', ')}`,
    "  --rounds N           instead of the benchmark's own",
    '  --ram MIB,...        sizes of RAM, where there is a choice',
    '  --qemu VERSION,...   7.2, 10.0; all that are here unless given',
    '  --guest NAME,...     idle, md5, reader, kv, where there is a choice',
    '  --only PART          only variants with this in their name; more than once if need be',
    '  --save FILE          the JSON lines go into this file too, behind what it has',
    'bench/README.md explains each, and has the latest results.',
  ].join('\n')

const LIST = { type: 'string', multiple: true, default: [] as string[] } as const

/** @throws TypeError for what is no option */
export function parseOptions(args: readonly string[]): BenchOptions {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      rounds: { type: 'string' },
      ram: LIST,
      qemu: LIST,
      guest: LIST,
      only: LIST,
      save: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const split = (list: readonly string[]): string[] => list.flatMap((each) => each.split(','))
  return {
    names: positionals,
    rounds: values.rounds === undefined ? undefined : positive(values.rounds),
    ramMiB: split(values.ram).map(positive),
    qemus: split(values.qemu),
    guests: split(values.guest),
    only: values.only,
    save: values.save,
    help: values.help,
  }
}

export function wantedQemus({ qemus }: BenchOptions): readonly QemuBinary[] {
  return findQemus().filter(({ version }) => qemus.length === 0 || qemus.includes(version))
}

function positive(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value <= 0) throw new TypeError(`"${text}" is not a positive number`)
  return value
}
