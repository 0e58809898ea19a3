import assert from 'node:assert/strict'
import { test } from 'node:test'
import { listCaptures, readCapture } from '../../test/wire/captures/captures.js'
import { ImageError, ProtocolError } from '../errors.js'
import { concat } from '../wire/bytes.js'
import { encodeDevice } from '../wire/device-sections.js'
import { encodeCommand } from '../wire/messages.js'
import { END_OF_STREAM, encodeSectionFull, encodeVmDescription } from '../wire/sections.js'
import { describeDevices, splitDevices } from './split-devices.js'

const names = ({ sections }: ReturnType<typeof splitDevices>) =>
  sections.map(({ idstr, instance, bodyBytes }) => `${idstr}/${instance} ${bodyBytes}`)

/** What stands behind the RAM of a capture: from the first device record to the end. */
function tailOf(stream: Buffer): Buffer {
  return stream.subarray(stream.lastIndexOf('\x05timer', undefined, 'latin1') - 5)
}

for (const capture of listCaptures().filter(({ name }) => /precopy|mapped/.test(name))) {
  test(`without the description the sections of ${capture.name} are found as with it`, () => {
    const tail = tailOf(readCapture(capture)[0]!.forward)
    const described = splitDevices(tail)
    assert.ok(described.vmDescription !== undefined && described.sections.length >= 15)
    const guessed = splitDevices(described.devices)
    assert.deepEqual(names(guessed), names(described))
    assert.equal(guessed.vmDescription, undefined)
    const withEnd = splitDevices(concat([described.devices, END_OF_STREAM]))
    assert.deepEqual(withEnd.sections, described.sections)
    // The description that we would write says the same.
    const json = describeDevices(guessed.sections)
    const rewritten = splitDevices(concat([described.devices, END_OF_STREAM, encodeVmDescription(json)]))
    assert.deepEqual(rewritten.sections, described.sections)
  })
}

test('a body that holds what looks like its footer and another section is taken by its own length', () => {
  const inner = encodeSectionFull({ id: 8, idstr: 'inner', instance: 0, version: 1 }, Uint8Array.of(1))
  const footer = Uint8Array.of(0x7e, 0, 0, 0, 7)
  const devices = concat([
    encodeDevice(7, 'outer', 1, concat([footer, inner])),
    encodeDevice(9, 'last', 1, new Uint8Array(0)),
  ])
  assert.deepEqual(names(splitDevices(devices)), [`outer/0 ${4 + 5 + inner.length}`, 'last/0 4'])
})

test('spans say where records and bodies lie, commands between them left out', () => {
  const one = encodeDevice(7, 'one', 1, Uint8Array.of(1, 2))
  const two = encodeDevice(8, 'two', 3, Uint8Array.of(3))
  const { devices, sections } = splitDevices(concat([one, encodeCommand({ name: 'PING', value: 1 }), two]))
  assert.deepEqual(Buffer.from(devices), Buffer.concat([one, two]))
  assert.deepEqual(sections[1], {
    ...{ id: 8, idstr: 'two', instance: 0, version: 3 },
    ...{ at: one.length, bodyAt: one.length + 1 + 4 + 4 + 4 + 4, bodyBytes: 5 },
  })
})

const device = encodeDevice(7, 'one', 1, Uint8Array.of(1, 2))
const REFUSED: Readonly<Record<string, readonly [Uint8Array, RegExp]>> = {
  'a record that is no device': [concat([device, Uint8Array.of(2, 0, 0, 0, 1)]), /unexpected behind the RAM/],
  'bytes behind the end': [concat([device, END_OF_STREAM, device]), /more behind the end/],
  'no footer': [device.subarray(0, device.length - 5), /end cannot be found/],
  'a description of other sections': [
    concat([device, END_OF_STREAM, encodeVmDescription(Buffer.from('{"devices":[]}'))]),
    /not the one described/,
  ],
  'a description that is none': [
    concat([device, END_OF_STREAM, encodeVmDescription(Buffer.from('[]'))]),
    /damaged description/,
  ],
}

for (const [what, [bytes, message]] of Object.entries(REFUSED)) {
  test(`refused: ${what}`, () => {
    assert.throws(
      () => splitDevices(bytes, { offset: 1000 }),
      (error) => {
        assert(error instanceof ProtocolError || error instanceof ImageError)
        assert.match(error.message, message)
        return true
      },
    )
  })
}
