// Entry of the source thread for a parked VM: its RAM is read from the image, as it is sent.

import { workerData } from 'node:worker_threads'
import type { RecordLimits } from '../order/recorder.js'
import { numberBlocks } from '../ram/block.js'
import { runSource, type Served, type SourceThreadBase } from '../source/run-source.js'
import { createStoredOrigin } from '../source/stored-origin.js'
import { CHUNK_PAGES } from './checksums.js'
import { createChunkReader } from './chunk-reader.js'
import { openImage } from './image.js'

export interface ServeThreadData extends SourceThreadBase {
  readonly path: string
  /** Compare each chunk of page data with its checksum before it is sent, where the image has a sidecar. */
  readonly verify: boolean
  /** Pages that earlier runs asked for, and how long to note what this one asks for. */
  readonly recorded: Uint32Array | undefined
  readonly record: RecordLimits | undefined
}

/** For pages that earlier runs asked for: less than a QEMU takes to start. */
const PREPARE_MS = 25
const FEW_CHUNKS = 32

const data = workerData as ServeThreadData

// Before the order to connect comes: what is wrong with the image is known before anybody waits for the guest.
const image = openImage(data.path)
const chunks = createChunkReader(image, data.verify)
// They lie nowhere: the image's pages are sent from the page cache, or from memory that serves them all.
const blocks = numberBlocks(
  image.blocks.map(({ name, length, pageSize }) => ({ name, length, pageSize, address: 0 })),
)

// QEMU starts meanwhile, and has no use for these yet.
const likely = data.options.order.recorded ? data.recorded : undefined
chunks.prepare(likely ?? few(), blocks, PREPARE_MS)

/** Pages of a few chunks: nobody knows what will be wanted, but to read has been rehearsed. */
function few(): Uint32Array {
  const { present } = image.blocks[0]!
  const pages: number[] = []
  for (let chunk = 0; pages.length < FEW_CHUNKS; ) {
    const page = present.nextSet(chunk * CHUNK_PAGES)
    if (page < 0) break
    pages.push(page)
    chunk = Math.floor(page / CHUNK_PAGES) + 1
  }
  return Uint32Array.from(pages)
}

runSource(data, served)

function served(): Served {
  const origin = createStoredOrigin({
    devices: image.devices,
    // Postcopy streams have none, and it is not needed; but a QEMU that takes a precopy waits for one.
    vmDescription: image.vmDescription ?? Buffer.from('{"page_size":4096,"devices":[]}'),
    present: image.blocks.map(({ present }) => present),
    read: ({ index }, page, most, urgent) => chunks.read(index, page, most, urgent),
    release: chunks.release,
    close() {
      chunks.close()
      image.close()
    },
  })
  return { origin, blocks, recorded: data.recorded, record: data.record }
}
