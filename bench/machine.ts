// Facts about the machine, which every result carries: a figure without them says nothing.

import { cpus, loadavg, release } from 'node:os'

export interface MachineFacts {
  readonly cpu: string
  readonly cores: number
  readonly kernel: string
  readonly node: string
  readonly date: string
  /** One-minute load average when the run began: other work on the machine shows here. */
  readonly load: number
}

export function machineFacts(): MachineFacts {
  const cores = cpus()
  return {
    cpu: cores[0]?.model.trim() ?? 'unknown',
    cores: cores.length,
    kernel: release(),
    node: process.version,
    date: new Date().toISOString(),
    load: loadavg()[0]!,
  }
}
