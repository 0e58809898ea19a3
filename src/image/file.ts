// Files of the image: opening, exact reads, readers of a part, and errors that name the file and the place.
// Synchronous; on whichever thread opens, writes or looks into an image.

import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs'
import { FarfaultError, ImageError, ProtocolError, SystemError, UsageError } from '../errors.js'
import { createStreamReader, type StreamReader } from '../wire/reader.js'

/** What the user can have got wrong; any other errno is trouble of the host. */
const USER_ERRNOS = new Set(['ENOENT', 'EACCES', 'EISDIR', 'ENOTDIR', 'ENAMETOOLONG', 'EROFS'])

/**
 * A file system call of Node's with our errors.
 * @throws UsageError for a path that cannot be used, SystemError for anything else (`ENOSPC`, `EIO`).
 */
export function onFile<T>(call: string, path: string, run: () => T): T {
  try {
    return run()
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (error instanceof FarfaultError || code === undefined) throw error
    if (USER_ERRNOS.has(code)) throw new UsageError(`cannot ${call} ${path}: ${code}`)
    throw new SystemError(call, code, path)
  }
}

/** A file that is open for reading. */
export interface OpenFile {
  readonly path: string
  readonly fd: number
  /** Length when it was opened, bytes. */
  readonly bytes: number
}

/** The length is found by its end, which works for block devices too. */
export function openForReading(path: string, lengthOf: (fd: number) => number): OpenFile {
  const fd = onFile('open', path, () => openSync(path, 'r'))
  try {
    return { path, fd, bytes: onFile('stat', path, () => lengthOf(fd)) }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** Fills `target` from `offset`. @throws ImageError when the file ends before. */
export function readExactly(file: OpenFile, target: Uint8Array, offset: number, what: string): void {
  for (let done = 0; done < target.length; ) {
    const got = onFile('read', file.path, () =>
      readSync(file.fd, target, done, target.length - done, offset + done),
    )
    if (got === 0) throw new ImageError(`the file ends inside ${what}`, file.path, offset + done)
    done += got
  }
}

/** @throws SystemError, `ENOSPC` when the disk is full. */
export function writeExactly(fd: number, path: string, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length; ) {
    const at = done
    done += onFile('write', path, () => writeSync(fd, bytes, at, bytes.length - at, offset + at))
  }
}

/** Large enough for the longest command. */
const BUFFER_BYTES = 64 * 1024

/**
 * A reader of the file from `offset` on; its stream offsets are file offsets. `step`: bytes read at a time, small where
 * what follows is not to be read.
 */
export function fileReader(file: OpenFile, offset: number, step = BUFFER_BYTES): StreamReader {
  const buffer = new Uint8Array(Math.max(BUFFER_BYTES, step))
  let next = offset
  const pull = (at: number, max: number): number => {
    const got = onFile('read', file.path, () => readSync(file.fd, buffer, at, Math.min(max, step), next))
    next += got
    return got
  }
  return createStreamReader(buffer, pull, {
    offset,
    ended: (at, record) => new ImageError(`the file ends inside ${record}`, file.path, at),
  })
}

/** Runs what reads the file; what its bytes do against the protocol is damage to the image, at that place. */
export function asImageErrors<T>(path: string, run: () => T): T {
  try {
    return run()
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    throw new ImageError(damage(error), path, error.offset)
  }
}

function damage({ record, message, expected, got }: ProtocolError): string {
  const what = message.slice(0, message.lastIndexOf(` (${record} at stream offset`))
  const detail = [
    expected === undefined ? '' : `, expected ${expected}`,
    got === undefined ? '' : `, got ${got}`,
  ]
  return `${record}: ${what}${detail.join('')}`
}

/** Makes a rename in the directory lasting. */
export function syncDirectory(path: string): void {
  onFile('fsync', path, () => {
    const fd = openSync(path, 'r')
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  })
}
