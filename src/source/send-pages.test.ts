import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createBitmap } from '../ram/bitmap.js'
import { numberBlocks } from '../ram/block.js'
import type { Extent } from './origin.js'
import type { Outgoing } from './outgoing.js'
import { sendPick } from './send-pages.js'
import type { Sender } from './sender.js'

test('pages that wait for room while others are asked for go once', () => {
  const blocks = numberBlocks([{ name: 'a', length: 64 * 4096, pageSize: 4096, address: 0x10_0000 }])
  const populated = createBitmap(64)
  populated.setRange(0, 64)
  const extent: Extent = { address: 0, pages: 0, lasting: false }
  const sent: number[] = []
  const pick = { blockIndex: 0, page: 0, pages: 32, lasting: false, reason: 'scanned' }
  const sender = (whenFull: () => void): Sender =>
    ({
      bytes: () => 0,
      pages(_, page, count) {
        whenFull()
        for (let p = page; p < page + count; p++) sent.push(p)
      },
    }) as Partial<Sender> as Sender
  const asked = [40, 41]
  const urgent = sender(() => {})
  const o = {
    ...{ blocks, populated: [populated], order: { pick }, urgent },
    stats: { pagesZero: 0, pagesNormal: 0, pagesRequested: 0, pagesLikely: 0 },
    pacer: { charge() {} },
    origin: {
      read: ({ address }: { address: number }, page: number, most: number) =>
        Object.assign(extent, { address: address + page * 4096, pages: Math.min(most, 16) }),
    },
    sender: sender(() => {
      const page = asked.shift()
      if (page === undefined) return
      Object.assign(pick, { page, pages: 1, reason: 'requested' })
      sendPick(o, urgent)
    }),
  } as unknown as Outgoing
  sendPick(o)
  assert.deepEqual(
    sent.sort((a, b) => a - b),
    [...Array(32).keys(), 40, 41],
  )
})
