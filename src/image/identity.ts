// What tells an image from others: a VM that lacks RAM must get it from the image that it was resumed from. Runs wherever
// an image is opened.

import { fstatSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { checksumDigits } from './checksums.js'
import type { Image } from './image.js'

/**
 * The checksums of the sidecar, all of them, so that a copy is the same image. Without a sidecar nothing is known of page data
 * but when the file was changed last: then a copy is another one.
 */
export function identityOf({ fd, fileBytes, sidecar }: Image): string {
  if (sidecar === undefined) return `${fileBytes} bytes of ${fstatSync(fd, { bigint: true }).mtimeNs}`
  const { metadataCrc32, blocks } = sidecar
  return `${fileBytes} bytes, metadata ${metadataCrc32}, pages ${checksumDigits(crc32(JSON.stringify(blocks)))}`
}
