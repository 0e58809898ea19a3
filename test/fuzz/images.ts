// Whatever bytes an image, its sidecar, its working set or a saved stream has: an ImageError with the place, or what was saved, unchanged.

import assert from 'node:assert/strict'
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ImageError } from '../../src/errors.js'
import { convertStream } from '../../src/image/convert.js'
import { createDemand } from '../../src/image/demand.js'
import { type Image, openImage } from '../../src/image/image.js'
import { inspectFile } from '../../src/image/inspect.js'
import { parseSidecar, workingSetPath } from '../../src/image/sidecar.js'
import { parseWorkingSet } from '../../src/image/working-set-file.js'
import type { Pieces } from '../engine/base-streams.js'
import { hostileFor, NOTHING_HOSTILE, spoil } from '../engine/mutations.js'
import type { Random } from '../engine/random.js'
import { createForwardSplitter } from '../faults/records.js'
import { makeImage, savedStream, type TestImage } from '../image/saved.js'
import { type Ending, refusalOf, type Target } from './target.js'

const MiB = 1024 * 1024

const temporary = (): string => mkdtempSync(join(tmpdir(), 'farfault-fuzz-'))

function imageErrorOf(run: () => void): Ending {
  const result = refusalOf(run)
  if (!('error' in result)) return 'sound'
  assert(result.error instanceof ImageError, String(result.error))
  return result.error
}

/** Runs of bytes that are not zero, at most this far apart, hold all that is not page data or air. */
const AIR_BYTES = 4096

function filledRanges(bytes: Buffer): (readonly [number, number])[] {
  const ranges: [number, number][] = []
  const zeros = Buffer.alloc(AIR_BYTES)
  for (let at = 0; at < bytes.length; at += AIR_BYTES) {
    const part = bytes.subarray(at, at + AIR_BYTES)
    if (part.equals(zeros.subarray(0, part.length))) continue
    const last = ranges.at(-1)
    if (last !== undefined && last[1] === at) last[1] = at + part.length
    else ranges.push([at, at + part.length])
  }
  return ranges
}

/** Reads every present page, and everything else that is to be had. */
function useImage(image: Image, random: Random): void {
  try {
    if (random.oneIn(4)) for (const _ of image.verify());
    for (const { length, pageSize, pagesOffset, present } of image.blocks) {
      assert(Number.isSafeInteger(length) && length > 0 && pageSize === 4096)
      assert.equal(present.length, length / pageSize)
      assert(pagesOffset >= 0 && pagesOffset % pageSize === 0)
      const last = present.count() === 0 ? -1 : lastSet(present)
      assert(
        pagesOffset + (last + 1) * pageSize <= image.fileBytes,
        'a present page lies behind the end of the file',
      )
    }
    for (const section of image.sections) assert(section.bodyBytes >= 0)
  } finally {
    image.close()
  }
}

function lastSet(present: Image['blocks'][number]['present']): number {
  let last = -1
  for (let page = present.nextSet(0); page >= 0; page = present.nextSet(page + 1)) {
    last = page
    if (page + 1 >= present.length) break
  }
  return last
}

export const images: Target = {
  name: 'images',
  skip: false,
  share: 2,
  async open() {
    const directory = temporary()
    const { path, bytes, sidecar, json } = await makeImage(directory)
    const bare = join(directory, 'bare.img')
    writeFileSync(bare, bytes)
    const fds = { with: openSync(path, 'r+'), without: openSync(bare, 'r+') }
    const ranges = filledRanges(bytes)
    const pages = openImage(path)
    const inPageData = (at: number): boolean =>
      pages.blocks.some(({ pagesOffset, length }) => at >= pagesOffset && at < pagesOffset + length)
    pages.close()
    return {
      run(random) {
        const withSidecar = random.oneIn(3)
        const file = withSidecar ? path : bare
        const fd = withSidecar ? fds.with : fds.without
        const undo: (() => void)[] = []
        const touched = new Set<number>()
        let metadataChanged = false
        if (random.oneIn(20)) {
          const cut = random.integer(bytes.length)
          ftruncateSync(fd, cut)
          metadataChanged = true
          undo.push(() => {
            ftruncateSync(fd, bytes.length)
            for (const [from, to] of ranges)
              if (to > cut) writeSync(fd, bytes.subarray(from, to), 0, to - from, from)
          })
        }
        for (let i = 0; i <= random.integer(3); i++) {
          const [from, to] = random.pick(ranges)
          const at = random.oneIn(2) ? random.integer(200) : from + random.integer(to - from)
          const value = random.oneIn(2) ? random.integer(256) : bytes[at]! ^ (1 << random.integer(8))
          if (touched.has(at)) continue
          touched.add(at)
          // A zero may be air between the parts of the file, which counts for nothing.
          if (bytes[at] !== 0 && value !== bytes[at] && !inPageData(at)) metadataChanged = true
          writeSync(fd, Uint8Array.of(value), 0, 1, at)
          undo.push(() => writeSync(fd, bytes.subarray(at, at + 1), 0, 1, at))
        }
        try {
          const ending = imageErrorOf(() => useImage(openImage(file), random))
          if (withSidecar && metadataChanged) assert(ending !== 'sound', 'changed metadata was not noticed')
          if (random.oneIn(4)) imageErrorOf(() => void inspectFile(file, { verify: withSidecar }))
          return ending
        } finally {
          for (const each of undo.reverse()) each()
        }
      },
      close() {
        for (const fd of Object.values(fds)) closeSync(fd)
        for (const file of [path, bare]) openImage(file).close()
        assert.equal(readFileSync(sidecar, 'utf8'), json)
        rmSync(directory, { recursive: true })
      },
    }
  },
}

/** A file beside an image: JSON whose checksum says that it is what was written. */
function besideImage(
  name: string,
  make: (image: TestImage) => string,
  parse: (json: string) => unknown,
): Target {
  return {
    name,
    skip: false,
    share: 1,
    async open() {
      const directory = temporary()
      const json = make(await makeImage(directory))
      rmSync(directory, { recursive: true })
      const whole = JSON.stringify(parse(json))
      const lines = [json.split(/(?<=\n)/).map((text) => Buffer.from(text))]
      return {
        run(random) {
          const { bytes } = spoil(lines[0]!, random, lines, NOTHING_HOSTILE)
          return imageErrorOf(() => {
            const parsed = parse(Buffer.from(bytes).toString('utf8'))
            assert.equal(JSON.stringify(parsed), whole, `changed ${name} were taken`)
          })
        },
        close() {},
      }
    },
  }
}

export const sidecars = besideImage(
  'sidecars',
  ({ json }) => json,
  (json) => parseSidecar(json, 'sidecar'),
)

export const workingSets = besideImage(
  'working-sets',
  ({ path }) => {
    const image = openImage(path)
    const demand = createDemand(image, {})
    image.close()
    const pages = Uint32Array.from({ length: 300 }, (_, i) => (i * 37) % 1024)
    const atUs = pages.map((_, i) => i * 90)
    demand.take({ pages, atUs, late: 0, ahead: 0, bytesPerSecond: 0, loadedMs: 0, settled: true })
    return readFileSync(workingSetPath(path), 'utf8')
  },
  (json) => parseWorkingSet(json, 'working set'),
)

/** The records of a captured stream; the devices at its end are one piece. */
function piecesOf(file: string): Pieces {
  const splitter = createForwardSplitter({ machine: '', postcopy: false }, false)
  splitter.feed(readFileSync(file))
  const pieces: Uint8Array[] = []
  for (let record = splitter.next(); record !== undefined; record = splitter.next()) pieces.push(record.bytes)
  return pieces
}

/** Saved streams of real QEMUs: looked into, and made an image of. */
export const savedStreams: Target = {
  name: 'saved-streams',
  skip: false,
  share: 2,
  open() {
    const directory = temporary()
    const names = ['7.2-precopy', '10.0-precopy', '7.2-precopy-pc', '10.0-precopy-pc', '10.0-postcopy']
    const bases = names.map((name) => {
      const file = savedStream(directory, name)
      const pieces = piecesOf(file)
      rmSync(file)
      return pieces
    })
    const hostile = hostileFor(4 * MiB, 256 * 1024)
    const input = join(directory, 'input')
    const output = join(directory, 'output')
    return {
      async run(random) {
        const { bytes } = spoil(random.pick(bases), random, bases, hostile)
        writeFileSync(input, bytes)
        try {
          const ending = imageErrorOf(() => void inspectFile(input))
          if (!random.oneIn(8)) return ending
          const converted = await convertStream(input, output).then(
            () => 'sound' as const,
            (error: unknown) => imageErrorOf(() => assert.fail(error as Error)),
          )
          if (converted === 'sound') useImage(openImage(output), random)
          else assert.deepEqual(readdirSync(directory), ['input'], 'something is left of a failed conversion')
          return converted
        } finally {
          for (const name of readdirSync(directory)) rmSync(join(directory, name))
        }
      },
      close: () => rmSync(directory, { recursive: true }),
    }
  },
}
