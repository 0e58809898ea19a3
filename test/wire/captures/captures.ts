// Short real streams of QEMU 7.2 and 10.0, for tests of the wire code. `make.ts` made them; manifest.json says how.

import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'

/** The directory in the source tree: this file runs from dist/test/wire/captures. */
export const CAPTURES_DIRECTORY = join(
  dirname(fileURLToPath(import.meta.url)),
  ...['..', '..', '..', '..'],
  ...['test', 'wire', 'captures'],
)

export interface Capture {
  /** As `7.2-postcopy`. */
  readonly name: string
  /** Version of the QEMU that sent it, as `7.2.22`. */
  readonly qemu: string
  readonly how: string
  readonly commandLine: readonly string[]
  /** QMP commands of the source, in order. */
  readonly qmp: readonly string[]
  readonly ramBytes: number
  /** SHA-256 of guest-physical memory from 1 MiB to the end of RAM, as it is when the guest has stopped. */
  readonly ramAbove1MiBSha256: string
  /** One a connection (or file), in order: byte counts of the migration stream and of the return path. */
  readonly connections: readonly { readonly forwardBytes: number; readonly backBytes: number }[]
}

export interface CaptureBytes {
  /** Migration stream, source to destination. */
  readonly forward: Buffer
  /** Return path; empty where there is none. */
  readonly back: Buffer
}

export function listCaptures(): readonly Capture[] {
  return JSON.parse(readFileSync(join(CAPTURES_DIRECTORY, 'manifest.json'), 'utf8')).captures
}

/** The bytes of each connection of a capture. */
export function readCapture({ name, connections }: Capture): readonly CaptureBytes[] {
  return connections.map(({ backBytes }, index) => ({
    forward: readPart(captureFile(name, index, 'forward')),
    back: backBytes === 0 ? Buffer.alloc(0) : readPart(captureFile(name, index, 'back')),
  }))
}

export function captureFile(name: string, connection: number, direction: 'forward' | 'back'): string {
  return join(CAPTURES_DIRECTORY, `${name}.${connection}.${direction}.bin.gz`)
}

function readPart(file: string): Buffer {
  return gunzipSync(readFileSync(file))
}
