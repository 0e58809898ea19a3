// Makes an image of ours of a mapped-ram file that QEMU has written itself: checksums, the sidecar, on disk, its name.
// Runs on the thread of the caller, and lets its event loop have a turn between strides.

import { fstatSync, fsyncSync, rmSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { TARGET_PAGE_BYTES } from '../ram/block.js'
import { checksumBlock, checksumDigits, chunksIn, metadataChecksum } from './checksums.js'
import { onFile } from './file.js'
import { type Image, openImage } from './image.js'
import { readLayout } from './layout.js'
import { assertCanWrite, partialPath, publish, removeRemnants, writeSidecar } from './publish.js'
import { encodeSidecar, type Made, type SidecarBlock } from './sidecar.js'
import type { WrittenImage } from './writer.js'

/** An image that somebody else writes, under a name that nobody takes for one. */
export interface Adoption {
  /** Where to write it. */
  readonly partial: string
  /** When it is written. Errors: `ImageError` for what is no image, SystemError. `abort` is still to be called then. */
  finish(made: Omit<Made, 'at'>, qemu: string | null): Promise<WrittenImage>
  /** Removes what was written. Idempotent; nothing after `finish`. */
  abort(): void
}

/** @throws UsageError when the file exists or its directory cannot be used. */
export function adoptImage(path: string, { replace = false } = {}): Adoption {
  assertCanWrite(path, replace)
  removeRemnants(path)
  const partial = partialPath(path)
  let open = true
  return {
    partial,
    async finish(made, qemu) {
      const image = openImage(partial)
      try {
        const adopted = await adopt(image, path, { ...made, at: new Date().toISOString() }, qemu)
        open = false
        return adopted
      } finally {
        image.close()
      }
    },
    abort() {
      if (open) rmSync(partial, { force: true })
      open = false
    },
  }
}

async function adopt(image: Image, path: string, made: Made, qemu: string | null): Promise<WrittenImage> {
  const file = { path: image.path, fd: image.fd, bytes: fstatSync(image.fd).size }
  const blocks: SidecarBlock[] = []
  for (const block of image.blocks) {
    const { name, length, pagesOffset, present } = block
    const checksums = new Array<string>(chunksIn(length)).fill('')
    const strides = checksumBlock(file, block, (chunk, checksum) => {
      checksums[chunk] = checksumDigits(checksum)
    })
    for (const _ of strides) await nextTurn()
    const presentPages = present.count()
    blocks.push({
      ...{ name, length, pagesOffset, presentPages },
      pageSize: TARGET_PAGE_BYTES,
      xxh64: checksums.join(''),
    })
  }
  const { machine } = image
  const metadataCrc32 = checksumDigits(metadataChecksum(file, 0, readLayout(file).blocks))
  const sidecar = encodeSidecar({ machine, qemu, made, fileBytes: file.bytes, metadataCrc32, blocks })
  onFile('fsync', image.path, () => fsyncSync(image.fd))
  writeSidecar(path, sidecar)
  publish(path)
  return {
    path,
    machine,
    memoryBytes: blocks.reduce((sum, { length }) => sum + length, 0),
    fileBytes: file.bytes,
    diskBytes: fstatSync(image.fd).blocks * 512,
    presentPages: blocks.reduce((sum, { presentPages }) => sum + presentPages, 0),
  }
}
