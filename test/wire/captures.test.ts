// Streams of real QEMUs: every byte is understood, and comes out again when it is encoded.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { ChannelError } from '../../src/errors.js'
import { concat } from '../../src/wire/bytes.js'
import { createReturnPathParser, encodeReturnMessage, type ReturnMessage } from '../../src/wire/messages.js'
import { encodePackage, splitPackage } from '../../src/wire/package.js'
import { encodeStreamItem, type StreamItem, type WalkOptions, walkStream } from '../../src/wire/stream.js'
import {
  describedBodyBytes,
  findVmDescription,
  readDescribedSections,
} from '../../src/wire/vm-description.js'
import { type Capture, listCaptures, readCapture } from './captures/captures.js'
import { chunkedReader } from './fixtures.js'

/** 1 MiB: below lies what the manifest's hash leaves out. */
const LOW_BYTES = 0x10_0000

/** Items of a connection; of one that was cut, up to the cut. */
function itemsOf(bytes: Uint8Array, options: WalkOptions, cut: boolean): StreamItem[] {
  const items: StreamItem[] = []
  const walk = () => walkStream(chunkedReader(bytes, 10_007), (item) => items.push(item), options)
  if (cut) assert.throws(walk, ChannelError)
  else walk()
  return items
}

function itemsOfCapture(capture: Capture): StreamItem[][] {
  const connections = readCapture(capture)
  const description = findVmDescription(connections.at(-1)!.forward)
  const described =
    description === undefined
      ? {}
      : {
          deviceBodyBytes: describedBodyBytes(
            readDescribedSections(connections[0]!.forward.subarray(description)),
          ),
        }
  const all: StreamItem[][] = []
  for (const [i, { forward }] of connections.entries()) {
    const start = all[0]?.find(({ kind }) => kind === 'ram-start')
    const recovered = start?.kind === 'ram-start' ? { ramSectionId: start.section.id } : {}
    all.push(itemsOf(forward, { ...described, ...recovered }, i < connections.length - 1))
  }
  return all
}

/** Content of the first block above 1 MiB when every record has been applied. */
function ramHash(items: readonly StreamItem[], ramBytes: number): string {
  const ram = new Uint8Array(ramBytes)
  let name: string | undefined
  for (const item of items) {
    if (item.kind !== 'ram-record') continue
    const { kind, offset, blockName, data, fill } = item.record
    name = blockName ?? name
    if (name !== 'pc.ram' && name !== 'microvm.ram') continue
    if (kind === 'page') ram.set(data, offset)
    if (kind === 'zero') ram.fill(fill, offset, offset + 4096)
  }
  return createHash('sha256').update(ram.subarray(LOW_BYTES)).digest('hex')
}

for (const capture of listCaptures().filter(({ name }) => !name.includes('mapped-ram'))) {
  test(`${capture.name}: encoding what was decoded gives the same bytes`, { timeout: 90_000 }, () => {
    const connections = readCapture(capture)
    for (const [i, items] of itemsOfCapture(capture).entries()) {
      const bytes = concat(items.map(encodeStreamItem))
      const { forward } = connections[i]!
      // A connection that was cut ends inside of a record.
      if (i === connections.length - 1) assert.equal(bytes.length, forward.length)
      assert(forward.length - bytes.length < 4400)
      assert(forward.subarray(0, bytes.length).equals(bytes))
    }
  })

  test(`${capture.name}: RAM is what it was`, { timeout: 90_000 }, () => {
    assert.equal(ramHash(itemsOfCapture(capture).flat(), capture.ramBytes), capture.ramAbove1MiBSha256)
  })

  test(`${capture.name}: return path`, { timeout: 90_000 }, () => {
    for (const { back } of readCapture(capture)) {
      const messages: ReturnMessage[] = []
      const lengths = blockLengths(itemsOfCapture(capture)[0]!)
      const parser = createReturnPathParser((message) => messages.push(message), {
        expectedBitmapBytes: (block) => 8 * Math.ceil((lengths.get(block) ?? 0) / 4096 / 64),
      })
      for (const byte of back) parser.feed(Uint8Array.of(byte))
      parser.end()
      assert.deepEqual(concat(messages.map(encodeReturnMessage)), Uint8Array.from(back))
    }
  })
}

function blockLengths(items: readonly StreamItem[]): Map<string, number> {
  const start = items.find(({ kind }) => kind === 'ram-start')
  assert(start?.kind === 'ram-start')
  return new Map(start.setup.blocks.map(({ name, length }) => [name, length]))
}

test('packages of real devices are split and made again', () => {
  let packages = 0
  for (const capture of listCaptures().filter(({ name }) => name.includes('postcopy'))) {
    for (const item of itemsOfCapture(capture).flat()) {
      if (item.kind !== 'package') continue
      const { devices, pings } = splitPackage(item.bytes)
      assert.deepEqual(pings, [3])
      assert.deepEqual(encodePackage({ devices, ping: 3 }), item.bytes)
      packages++
    }
  }
  assert(packages >= 4)
})
