// Entry of the source thread for a parked VM: its RAM is the mapped image, so that nothing is read that is not sent, and
// many resumes of one image share the page cache.

import { workerData } from 'node:worker_threads'
import type { RecordLimits } from '../order/recorder.js'
import { type Mapping, mapFile } from '../os/mapping.js'
import { createBitmap } from '../ram/bitmap.js'
import { numberBlocks, type RamBlock } from '../ram/block.js'
import { runSource, type Served, type SourceThreadBase } from '../source/run-source.js'
import { createStoredOrigin } from '../source/stored-origin.js'
import { CHUNK_PAGES, chunksIn } from './checksums.js'
import { openImage } from './image.js'

export interface ServeThreadData extends SourceThreadBase {
  readonly path: string
  /** Compare each chunk of page data with its checksum before it is sent, where the image has a sidecar. */
  readonly verify: boolean
  /** Pages that earlier runs asked for, and how long to note what this one asks for. */
  readonly recorded: Uint32Array | undefined
  readonly record: RecordLimits | undefined
}

const data = workerData as ServeThreadData

// Before the order to connect comes: what is wrong with the image is known before anybody waits for the guest.
const image = openImage(data.path)
const mappings = image.blocks.map(({ length, pagesOffset }) =>
  mapFile(image.fd, length, { offset: pagesOffset, shared: true, readOnly: true }),
)

runSource(data, () => mapped(mappings))

function mapped(ram: readonly Mapping[]): Served {
  const blocks = numberBlocks(
    image.blocks.map(({ name, length, pageSize }, i) => ({
      name,
      length,
      pageSize,
      address: ram[i]!.address,
    })),
  )
  const origin = createStoredOrigin({
    devices: image.devices,
    // Postcopy streams have none, and it is not needed; but a QEMU that takes a precopy waits for one.
    vmDescription: image.vmDescription ?? Buffer.from('{"page_size":4096,"devices":[]}'),
    present: image.blocks.map(({ present }) => present),
    verify: data.verify ? verifier() : () => {},
    close() {
      for (const mapping of ram) mapping.unmap()
      image.close()
    },
  })
  return { origin, blocks, recorded: data.recorded, record: data.record }
}

/** Each chunk is compared once, just before its first page is sent. */
function verifier(): (block: RamBlock, page: number) => void {
  const verified = image.blocks.map(({ length }) => createBitmap(chunksIn(length)))
  return (block, page) => {
    const chunk = Math.floor(page / CHUNK_PAGES)
    if (verified[block.index]!.get(chunk)) return
    image.verifyChunk(block.index, page)
    verified[block.index]!.set(chunk)
  }
}
