// `farfault probe`: what this host can do. Main thread.

import { probeHost } from '../index.js'
import type { PROBE_OPTIONS } from './commands.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Values } from './options.js'
import { formatProbeJson, formatProbeText } from './probe-format.js'

export async function probeCommand(values: Values<typeof PROBE_OPTIONS>): Promise<ExitCode> {
  const report = probeHost()
  process.stdout.write(`${values.json ? formatProbeJson(report) : formatProbeText(report)}\n`)
  return report.canReceive ? EXIT.ok : EXIT.failed
}
