// What goes out is read back by the wire's own reader, through a socket that is often full.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { AGAIN, closeFd, socketPair, tryRead } from '../os/channel.js'
import { mapAnonymous, viewOf } from '../os/mapping.js'
import { nativeBuffer } from '../os/memory.js'
import { numberBlocks } from '../ram/block.js'
import { encodeCommand } from '../wire/messages.js'
import { readerOf } from '../wire/reader.js'
import { END_OF_STREAM, encodeConfiguration, encodeHeader } from '../wire/sections.js'
import { type StreamItem, walkStream } from '../wire/stream.js'
import { createSender } from './sender.js'

const PAGE = 4096
const PAGES = 1200
const options = { timeout: 60_000 }

function pipe(t: TestContext) {
  // A unix socket holds a few hundred KiB, TCP on loopback would hold everything.
  const [near, far] = socketPair()
  const buffer = nativeBuffer(1 << 20)
  const chunks: Buffer[] = []
  let fullTimes = 0
  function readAll(): void {
    for (;;) {
      const count = tryRead(far, buffer.address, buffer.length)
      if (count === AGAIN || count === 0) return
      chunks.push(Buffer.from(buffer.bytes.subarray(0, count)))
    }
  }
  let pagesSent = 0
  const sender = createSender(
    near,
    1,
    () => {
      fullTimes++
      readAll()
    },
    (pages) => {
      pagesSent += pages
    },
  )
  const ram = mapAnonymous(PAGES * PAGE)
  const [a, b] = numberBlocks([
    { name: 'a', length: ram.length / 2, pageSize: PAGE, address: ram.address },
    { name: 'b'.repeat(255), length: ram.length / 2, pageSize: PAGE, address: ram.address + ram.length / 2 },
  ])
  t.after(() => {
    sender.close()
    ram.unmap()
    for (const fd of [near, far]) closeFd(fd)
  })
  async function received(): Promise<Buffer> {
    // Bytes may still be on their way when the sender has been told that all is taken.
    for (let i = 0; i < 200 && chunks.reduce((sum, { length }) => sum + length, 0) < sender.bytes(); i++) {
      await new Promise((resolve) => setTimeout(resolve, 2))
      readAll()
    }
    return Buffer.concat(chunks)
  }
  return {
    sender,
    a: a!,
    b: b!,
    memory: viewOf(ram.address, ram.length),
    received,
    fullTimes: () => fullTimes,
    pagesSent: () => pagesSent,
  }
}

const opening = Buffer.concat([encodeHeader(), encodeConfiguration({ machine: 'm' })])

/** The items behind the header, as text; RAM sections need no list of blocks to be walked. */
function itemsOf(stream: Buffer): StreamItem[] {
  const items: StreamItem[] = []
  const reader = readerOf(stream)
  reader.skip(opening.length, 'header')
  walkStream(reader, (item) => void items.push(item), { ramSectionId: 1 })
  return items
}

for (const lasting of [false, true]) {
  test(
    `many pages of two blocks, through a full socket, byte for byte${lasting ? ', by reference' : ''}`,
    options,
    async (t) => {
      const { sender, a, b, memory, received, fullTimes, pagesSent } = pipe(t)
      for (let i = 0; i < memory.length; i += 512) memory[i] = 1 + ((i / 512) % 251)
      const sent: string[] = []
      sender.control(opening)
      for (let page = 0; page < PAGES / 2; page++) {
        for (const block of page % 7 === 0 ? [a, b] : [a]) {
          if (page % 5 === 0) sender.zeroPage(block, page)
          else sender.pages(block, page, 1, block.address + page * PAGE, lasting)
          sent.push(`${block.name[0]} ${page} ${page % 5 === 0 ? 'zero' : 'page'}`)
        }
        if (page % 30 === 29) sender.flush() // so that the socket holds what several sendings left
        if (page % 100 === 99) sender.control(encodeCommand({ name: 'PING', value: page }))
      }
      sender.endSection(() => sender.zeroPage(b, 1))
      sender.control(END_OF_STREAM)
      sender.flush()
      const stream = await received()
      assert.equal(stream.length, sender.bytes())
      assert(fullTimes() > 0, 'the socket was never full: nothing was tested')
      assert.equal(pagesSent(), sent.filter((what) => what.endsWith('page')).length)

      const records = itemsOf(stream).flatMap((item) => (item.kind === 'ram-record' ? [item.record] : []))
      let name = ''
      const got = records.flatMap(({ kind, blockName, offset, data }) => {
        if (kind === 'eos') return []
        name = blockName ?? name
        const from = (name === 'a' ? 0 : memory.length / 2) + offset
        if (kind === 'page')
          assert(Buffer.from(data).equals(memory.subarray(from, from + PAGE)), `${name} ${offset}`)
        return [`${name[0]} ${offset / PAGE} ${kind}`]
      })
      assert.deepEqual(got, [...sent, 'b 1 zero'])
    },
  )
}

test(
  'control records end the section; a block is named when it changes, or has been forgotten',
  options,
  async (t) => {
    const { sender, a, b, received } = pipe(t)
    sender.control(opening)
    sender.zeroPage(a, 0)
    sender.zeroPage(a, 1)
    sender.control(encodeCommand({ name: 'PING', value: 1 }))
    sender.zeroPage(a, 2)
    sender.zeroPage(b, 0)
    sender.forgetBlock()
    sender.zeroPage(b, 1)
    sender.closeSection()
    sender.closeSection()
    sender.endSection(() => {})
    sender.control(END_OF_STREAM)
    sender.flush()
    const shape = itemsOf(await received()).map((item) =>
      item.kind === 'ram-record'
        ? `${item.record.kind} ${item.record.blockName?.[0] ?? ''}`.trim()
        : item.kind,
    )
    assert.deepEqual(shape, [
      ...['ram-part', 'zero a', 'zero', 'eos', 'footer', 'command'],
      ...['ram-part', 'zero', 'zero b', 'zero b', 'eos', 'footer'],
      ...['ram-end', 'eos', 'footer', 'eof'],
    ])
  },
)
