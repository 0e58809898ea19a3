// How an image gets its name: written under another one, and renamed when it is whole and on disk. Runs on the thread that
// writes the image.

import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  unlinkSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { UsageError } from '../errors.js'
import { onFile, syncDirectory, writeExactly } from './file.js'
import { sidecarPath, workingSetPath } from './sidecar.js'

/** Before anything is stopped for it. @throws UsageError when the file exists or its directory cannot be written to. */
export function assertCanWrite(path: string, replace: boolean): void {
  if (!replace && existsSync(path)) throw new UsageError(`${path} exists`)
  onFile('write to', dirname(path), () => accessSync(dirname(path), constants.W_OK | constants.X_OK))
}

const PARTIAL = '.partial'

/** The name of a file while it is written: hidden, in the same directory, and of this process. */
export const partialPath = (path: string): string =>
  join(dirname(path), `.${basename(path)}.${process.pid}${PARTIAL}`)

/** What killed writers of the same image have left. */
export function removeRemnants(path: string): void {
  const names = new Set([path, sidecarPath(path), workingSetPath(path)].map((file) => basename(file)))
  for (const file of onFile('list', dirname(path), () => readdirSync(dirname(path)))) {
    const [, name, pid] = /^\.(.+)\.(\d+)\.partial$/.exec(file) ?? []
    if (name === undefined || !names.has(name)) continue
    if (!existsSync(`/proc/${pid}`)) rmSync(join(dirname(path), file), { force: true })
  }
}

export function writeSidecar(path: string, text: string): void {
  const partial = partialPath(sidecarPath(path))
  onFile('write', partial, () => {
    const fd = openSync(partial, 'w', 0o600)
    try {
      writeExactly(fd, partial, Buffer.from(text), 0)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  })
}

/**
 * Two names cannot change at once. So at no moment is there an image with the sidecar of another one: an image that is
 * replaced loses its sidecar first.
 */
export function publish(path: string): void {
  const sidecar = sidecarPath(path)
  const moveSidecar = (): void => onFile('rename', sidecar, () => renameSync(partialPath(sidecar), sidecar))
  const moveImage = (): void => onFile('rename', path, () => renameSync(partialPath(path), path))
  if (!existsSync(path)) {
    moveSidecar()
    moveImage()
  } else {
    if (existsSync(sidecar)) onFile('unlink', sidecar, () => unlinkSync(sidecar))
    moveImage()
    moveSidecar()
  }
  syncDirectory(dirname(path))
}

/** Takes a finished image back: its source has not let go of the guest after all. */
export function removeImage(path: string): void {
  rmSync(path, { force: true })
  rmSync(sidecarPath(path), { force: true })
  syncDirectory(dirname(path))
}
