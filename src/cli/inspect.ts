// `farfault inspect`: what is in an image or a saved stream. Main thread.

import { type InspectedBlock, type InspectReport, inspectFile } from '../index.js'
import type { INSPECT_OPTIONS } from './commands.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Operands, Values } from './options.js'
import { createProgressLine } from './progress-line.js'
import { bytes, counted, milliseconds, number, table } from './text.js'

export async function inspectCommand(values: Values<typeof INSPECT_OPTIONS> & Operands): Promise<ExitCode> {
  const line = createProgressLine(true)
  const report = inspectFile(values.operands[0]!, {
    verify: values.verify,
    onProgress: (done) => line.show(() => `${bytes(done)} read`),
  })
  line.end()
  const text = values.json ? JSON.stringify(report, undefined, 2) : describe(report).join('\n')
  process.stdout.write(`${text}\n`)
  return EXIT.ok
}

function describe(report: InspectReport): string[] {
  const { file, kind, fileBytes, diskBytes, machine, uuid, capabilities, blocks, devices, sidecar } = report
  const { ramSection, deviceBytes, vmDescriptionBytes, verified } = report
  const memory = blocks.reduce((sum, { length }) => sum + length, 0)
  const present = blocks.reduce((sum, { presentPages }) => sum + presentPages, 0)
  return [
    `${file}: ${kind === 'image' ? 'image of a parked VM' : 'saved stream'}, ${bytes(fileBytes)}, ${bytes(diskBytes)} on disk`,
    `  machine       ${machine}${uuid === null ? '' : `, UUID ${uuid}`}`,
    ...(capabilities.length === 0 ? [] : [`  capabilities  ${capabilities.join(', ')}`]),
    `  RAM           ${bytes(memory)} in ${counted(blocks.length, 'block')}; ${counted(present, 'page')} with content`,
    `  RAM sections  ${number(ramSection.sections)}, id ${ramSection.id}, version ${ramSection.version}`,
    `  devices       ${counted(devices.length, 'section')}, ${bytes(deviceBytes)}`,
    `  description   ${vmDescriptionBytes === 0 ? 'none' : bytes(vmDescriptionBytes)}`,
    ...(kind === 'image' ? [`  sidecar       ${describeSidecar(sidecar)}`] : []),
    ...(kind === 'image'
      ? describeWorkingSet(report).map((line, i) => `  ${i === 0 ? 'working set' : '           '}   ${line}`)
      : []),
    ...(verified === null ? [] : [`  verified      ${bytes(verified.bytes)}, all checksums are right`]),
    '',
    ...table(
      ['RAM block', 'length', 'pages', 'present', 'zero', ...(kind === 'stream' ? ['records'] : [])],
      blocks.map(({ name, length, pages, presentPages, zeroPages, records }) => [
        name,
        bytes(length),
        number(pages),
        number(presentPages),
        number(zeroPages),
        ...(records === undefined ? [] : [describeRecords(records)]),
      ]),
    ),
    '',
    ...table(
      ['device', 'instance', 'version', 'id', 'bytes'],
      devices.map(({ idstr, instance, version, id, bytes: length }) => [
        idstr,
        `${instance}`,
        `${version}`,
        `${id}`,
        number(length),
      ]),
    ),
  ]
}

function describeSidecar(sidecar: InspectReport['sidecar']): string {
  if (sidecar === null) return 'none: nothing to verify the page data with'
  const { made, qemu } = sidecar
  return [
    `${made.how} by ${made.by} at ${made.at}`,
    ...(made.from === null ? [] : [`from ${made.from}`]),
    ...(qemu === null ? [] : [`of QEMU ${qemu}`]),
  ].join(', ')
}

function describeWorkingSet({ workingSet, workingSetProblem }: InspectReport): string[] {
  if (workingSetProblem !== undefined) return [`of no use: ${workingSetProblem}`]
  if (workingSet === null) return ['none: the next run records one']
  const { pages, ranges, bytes: size, records, seenOnce, cameAlong, spanMs, recorded, last } = workingSet
  const often = records > 1 ? `, ${counted(seenOnce, 'page')} in one only` : ''
  const along = cameAlong > 0 ? `, ${number(cameAlong)} near to one that was asked for` : ''
  const rate = last.hitRate === null ? '' : `, ${Math.round(100 * last.hitRate)} % came in time`
  return [
    ...(workingSet.earlier
      ? ['of the image that was here before: a virtual machine that is parked again asks for the same']
      : []),
    `${counted(pages, 'page')} in ${counted(ranges, 'range')}, ${bytes(size)}, within ${milliseconds(spanMs)}`,
    `${counted(records, 'record')}${often}${along}; the last at ${recorded.at} on ${recorded.host}, order ${recorded.order}${recorded.settled ? '' : ', cut short: the next run adds to it'}`,
    `last run at ${last.at} on ${last.host}, order ${last.order}: ${number(last.ahead)} ahead, ${number(last.late)} late, ${number(last.missed)} missed${rate}`,
  ]
}

const describeRecords = (records: NonNullable<InspectedBlock['records']>): string =>
  Object.entries(records)
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${number(count)} ${kind}`)
    .join(', ')
