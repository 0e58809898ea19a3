// Resume by mapping: the machine's RAM is a private mapping of the image, and the stream carries all but that RAM. No
// server stays behind, and no userfaultfd is needed. It works where the image is a local file that QEMU can map at an
// offset, and where the machine's RAM is one block. Main thread.

import { execFile } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { promisify } from 'node:util'
import { type Image, openImage } from '../image/image.js'

/** How the command changes, or why it cannot be done. */
export type MapPlan =
  | { readonly block: string; readonly args: readonly string[] }
  | { readonly reason: string }

const HELP_TIMEOUT_MS = 5000
/** RAM blocks that QEMU makes itself when it is given no memory backend. */
const DEFAULT_RAM = ['pc.ram', 'microvm.ram']

export async function planMapping(imagePath: string, command: readonly string[]): Promise<MapPlan> {
  const image = openImage(imagePath)
  try {
    return (await cannot(image, command)) ?? mapping(image)
  } finally {
    image.close()
  }
}

const ramOf = (image: Image) => image.blocks.find(({ name }) => DEFAULT_RAM.includes(name))

async function cannot(image: Image, command: readonly string[]): Promise<{ reason: string } | undefined> {
  const ram = ramOf(image)
  if (ram === undefined) {
    const names = image.blocks.map(({ name }) => name).join(', ')
    return { reason: `the machine's RAM is not one default block: the image has ${names}` }
  }
  if (command.some((argument) => /memory-backend|^-mem-path$|^-numa$/.test(argument))) {
    return { reason: 'the command gives the machine a memory backend of its own' }
  }
  if (image.sidecar === undefined) {
    return {
      reason:
        'the image has no sidecar: where it holds no page, the file may still hold an old one, which would be mapped',
    }
  }
  if (!(await canMapAtOffset(command[0]!))) {
    return { reason: 'this QEMU cannot map a file from an offset on (QEMU 8.1 and newer can)' }
  }
  return undefined
}

async function canMapAtOffset(program: string): Promise<boolean> {
  try {
    const args = ['-object', 'memory-backend-file,help']
    const { stdout } = await promisify(execFile)(program, args, { timeout: HELP_TIMEOUT_MS })
    return /^\s*offset=/m.test(stdout)
  } catch {
    return false // what is wrong with the program is said when it is started
  }
}

function mapping(image: Image): MapPlan {
  const { name, length, pagesOffset } = ramOf(image)!
  const backend = [
    'memory-backend-file',
    `id=${name}`,
    // QEMU reads a comma in a value as two.
    `mem-path=${realpathSync(image.path).replaceAll(',', ',,')}`,
    `size=${length}`,
    `offset=${pagesOffset}`,
    'share=off',
  ]
  return { block: name, args: ['-object', backend.join(','), '-machine', `memory-backend=${name}`] }
}
