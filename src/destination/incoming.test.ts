// The order of records: what may come when. What the pages do is the concern of load and placer.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type FarfaultError, IllegalTransition, ProtocolError } from '../errors.js'
import { createMachine } from '../machine.js'
import { createStats, statsBytes } from '../stats.js'
import { encodeDevice } from '../wire/device-sections.js'
import { type Command, encodeCommand, type ReturnMessage } from '../wire/messages.js'
import { encodePackage } from '../wire/package.js'
import { encodeRamSetup } from '../wire/ram-setup.js'
import { readerOf } from '../wire/reader.js'
import {
  END_OF_STREAM,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionPart,
  encodeSectionStart,
} from '../wire/sections.js'
import { createIncoming, type Prepared } from './incoming.js'
import { CELL, DESTINATION_STATS } from './shared.js'
import { INCOMING_STATUS, POSTCOPY_STATE } from './status.js'

const MACHINE = 'farfault-test'
const command = (c: Command): Uint8Array => encodeCommand(c)
const HEADER = Buffer.concat([encodeHeader(), encodeConfiguration({ machine: MACHINE })])
const OPEN = command({ name: 'OPEN_RETURN_PATH' })
const PING = command({ name: 'PING', value: 7 })
const DEVICE = encodeDevice(9, 'd', 1, Uint8Array.of(1, 2))
const PACKAGE = encodePackage({ devices: DEVICE, ping: 3 })
const PACKAGED = Buffer.concat([command({ name: 'PACKAGED', length: PACKAGE.length }), PACKAGE])
/** No blocks: there is no RAM to wait for. */
const RAM_START = Buffer.concat([
  encodeSectionStart({ id: 2, idstr: 'ram', instance: 0, version: 4 }),
  encodeRamSetup([], { postcopy: false }),
  encodeFooter(2),
])

/** Takes records in with no blocks and no kernel; answers what was called. */
function take(...records: Uint8Array[]): { calls: string[]; sent: ReturnMessage[] } {
  const calls: string[] = []
  const sent: ReturnMessage[] = []
  const cells = new Int32Array(new SharedArrayBuffer(CELL.count * 4))
  const note =
    (what: string) =>
    (value?: unknown): void =>
      void calls.push(typeof value === 'boolean' ? `${what} ${value}` : what)
  const prepared = {
    blocks: [],
    received: [],
    guest: { load: note('load'), run: note('run'), holdBalloon: note('hold'), loaded: () => true },
    placer: { assertNothingPending: () => {}, enterPostcopy: note('postcopy') },
    loader: { loadBody: note('body') },
  } as unknown as Prepared
  const status = createMachine('incoming', INCOMING_STATUS, cells, CELL.status)
  status.step('incoming')
  createIncoming({
    reader: readerOf(Buffer.concat([HEADER, ...records])),
    wakeFd: -1,
    stats: createStats(DESTINATION_STATS, new SharedArrayBuffer(statsBytes(DESTINATION_STATS))),
    status,
    postcopy: createMachine('postcopy', POSTCOPY_STATE, cells, CELL.postcopy),
    openReturnPath: () => ({ send: (message) => void sent.push(message) }),
    prepare: ({ machine }) => {
      calls.push(`prepare ${machine}`)
      return prepared
    },
  }).run()
  return { calls, sent }
}

test('a precopy: the devices are loaded at the end of the stream, and not run here', () => {
  const part = Buffer.concat([encodeSectionPart(2), encodeFooter(2)])
  const { calls, sent } = take(OPEN, PING, RAM_START, part, DEVICE, END_OF_STREAM)
  assert.deepEqual(calls, [`prepare ${MACHINE}`, 'body', 'load'])
  assert.deepEqual(sent, [{ name: 'PONG', value: 7 }])
})

const REFUSED: readonly (readonly [string, readonly Uint8Array[], new (...a: never[]) => FarfaultError])[] = [
  ['PING without a return path', [PING], ProtocolError],
  ['pages before the list of blocks', [encodeSectionPart(2)], ProtocolError],
  ['pages in a section that was never started', [RAM_START, encodeSectionPart(3)], ProtocolError],
  ['a second list of blocks', [RAM_START, RAM_START], ProtocolError],
  ['the end before the list of blocks', [END_OF_STREAM], ProtocolError],
  ['the package before the list of blocks', [PACKAGED], ProtocolError],
  ['the package without ADVISE', [RAM_START, PACKAGED], IllegalTransition],
  [
    'a package of half a command',
    [RAM_START, command({ name: 'PACKAGED', length: 3 }), PACKAGE],
    ProtocolError,
  ],
  ['LISTEN outside of the package', [RAM_START, command({ name: 'POSTCOPY_LISTEN' })], ProtocolError],
  [
    'RECOVER where there is nothing to recover',
    [RAM_START, command({ name: 'POSTCOPY_RESUME' })],
    ProtocolError,
  ],
  [
    'a discard without ADVISE',
    [RAM_START, command({ name: 'POSTCOPY_RAM_DISCARD', block: 'a', ranges: [{ start: 0, length: 4096 }] })],
    IllegalTransition,
  ],
  [
    'another target page size',
    [command({ name: 'POSTCOPY_ADVISE', sizes: { pageSizeSummary: 4096, targetPageSize: 1024 } })],
    ProtocolError,
  ],
  ['device state without end', [RAM_START, ...Array.from({ length: 5000 }, () => DEVICE)], ProtocolError],
  ['ADVISE without sizes', [command({ name: 'POSTCOPY_ADVISE', sizes: null })], ProtocolError],
]

for (const [what, records, expected] of REFUSED) {
  test(`refused: ${what}`, () => {
    assert.throws(() => take(...records, END_OF_STREAM), expected)
  })
}
