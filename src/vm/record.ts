// What a QEMU was resumed from, in a file in its private directory: whoever goes on serving it must have the same image.
// Main thread.

import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { UsageError } from '../errors.js'
import { DIRECTORY_PREFIX, QMP_SOCKET } from '../qemu/launch.js'

/** All that a new process has to know of the one that served before. */
export interface ServingRecord {
  /** Absolute path. */
  readonly image: string
  /** See image/identity.ts. */
  readonly identity: string
  /** QEMU has the capability postcopy-preempt on. */
  readonly preempt: boolean
  /** Of QEMU. */
  readonly pid: number
}

const FIELDS = { image: 'string', identity: 'string', preempt: 'boolean', pid: 'number' } as const

const recordPath = (directory: string): string => join(directory, 'resumed.json')

export function writeRecord(directory: string, { image, ...rest }: ServingRecord): void {
  writeFileSync(recordPath(directory), `${JSON.stringify({ image: resolve(image), ...rest })}\n`)
}

/** @throws UsageError when there is none */
export function readRecord(directory: string): ServingRecord {
  const path = recordPath(directory)
  let value: unknown
  try {
    value = JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    throw new UsageError(
      `${path} cannot be read (${(error as Error).message}): either that QEMU has ended, or resume has not started it`,
    )
  }
  const fields = Object(value) as Record<string, unknown>
  for (const [name, type] of Object.entries(FIELDS)) {
    if (typeof fields[name] !== type) throw new UsageError(`${path}: ${name} is not a ${type}`)
  }
  return value as ServingRecord
}

/** @throws UsageError for another image than the one that the VM was resumed from */
export function assertSameImage(record: ServingRecord, path: string, identity: string): void {
  if (record.identity === identity) return
  throw new UsageError(
    `${path} is not the image that this VM was resumed from, ${record.image}: it has ${identity}, and the VM's had ${record.identity}`,
  )
}

/** Whether there is a process of that number. */
export function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/**
 * Removes the directories of QEMUs that ended when nobody was left to do so. One without a record may be about to start; one with
 * a QMP socket may run where its process cannot be seen, in another container: a QEMU that ends takes its socket along.
 */
export function removeEnded(parent = tmpdir()): void {
  for (const directory of directoriesIn(parent)) {
    try {
      if (hasEnded(directory)) rmSync(directory, { recursive: true, force: true })
    } catch {
      // It has no record, or somebody else has removed it.
    }
  }
}

const hasEnded = (directory: string): boolean =>
  lstatSync(directory).uid === process.geteuid!() &&
  !isAlive(readRecord(directory).pid) &&
  !existsSync(join(directory, QMP_SOCKET))

function directoriesIn(parent: string): string[] {
  try {
    return readdirSync(parent, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && entry.name.startsWith(DIRECTORY_PREFIX))
      .map(({ name }) => join(parent, name))
  } catch {
    return [] // to tidy up is no reason to fail
  }
}
