// Captured streams as files, and an image made of one. For tests that need no QEMU.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { convertStream } from '../../src/image/convert.js'
import { listCaptures, readCapture } from '../wire/captures/captures.js'

/** The stream of a capture as a file in `directory`; its path. */
export function savedStream(directory: string, name: string): string {
  const capture = listCaptures().find((each) => each.name === name)!
  const path = join(directory, name)
  writeFileSync(path, readCapture(capture)[0]!.forward)
  return path
}

export interface TestImage {
  readonly path: string
  readonly sidecar: string
  /** Their bytes, to be put back. */
  readonly bytes: Buffer
  readonly json: string
}

/** An image with its sidecar: a pc with 4 MiB of RAM and 31 devices. */
export async function makeImage(directory: string): Promise<TestImage> {
  const path = join(directory, 'vm.img')
  await convertStream(savedStream(directory, '10.0-precopy-pc'), path)
  const sidecar = `${path}.json`
  return { path, sidecar, bytes: readFileSync(path), json: readFileSync(sidecar, 'utf8') }
}
