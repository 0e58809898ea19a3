import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { concat } from './bytes.js'
import { decodeDevices, encodeDevice } from './device-sections.js'
import { type Command, encodeCommand } from './messages.js'
import { encodePackage, splitPackage } from './package.js'
import { encodeFooter, encodeSectionFull, encodeSectionPart } from './sections.js'

const LISTEN = encodeCommand({ name: 'POSTCOPY_LISTEN' })
const RUN = encodeCommand({ name: 'POSTCOPY_RUN' })
const ping = (value: number) => encodeCommand({ name: 'PING', value })
const DEVICE = encodeSectionFull({ id: 5, idstr: 'timer', instance: 0, version: 2 }, Uint8Array.of(1, 2, 3))

test('a package is split into what it was made of', () => {
  for (const value of [undefined, 3, 0x7e000000]) {
    const bytes = encodePackage(value === undefined ? { devices: DEVICE } : { devices: DEVICE, ping: value })
    assert.deepEqual(splitPackage(bytes), { devices: DEVICE, pings: value === undefined ? [] : [value] })
  }
})

test('PINGs in front of and behind the devices are collected in order', () => {
  const bytes = concat([LISTEN, ping(1), ping(2), DEVICE, DEVICE, ping(3), ping(4), RUN])
  assert.deepEqual(splitPackage(bytes), { devices: concat([DEVICE, DEVICE]), pings: [1, 2, 3, 4] })
})

test('a package may be without devices', () => {
  assert.deepEqual(splitPackage(encodePackage({ devices: new Uint8Array(0), ping: 3 })), {
    devices: new Uint8Array(0),
    pings: [3],
  })
})

test('device state that looks like commands stays device state', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 40 }),
      fc.nat(0xffff_ffff),
      fc.nat(0xffff_ffff),
      (noise, id, value) => {
        const body = concat([noise, ping(value), RUN, noise, ping(value)])
        const devices = encodeSectionFull({ id, idstr: 'x', instance: 0, version: 1 }, body)
        assert.deepEqual(splitPackage(encodePackage({ devices, ping: value })), { devices, pings: [value] })
      },
    ),
  )
})

test('packages of another order are refused', () => {
  const resume: Command = { name: 'POSTCOPY_RESUME' }
  const cases: readonly [string, Uint8Array[]][] = [
    ['empty', []],
    ['no LISTEN', [DEVICE, ping(3), RUN]],
    ['RUN first', [RUN, DEVICE, LISTEN]],
    ['no RUN', [LISTEN, DEVICE, ping(3)]],
    ['RUN is not last', [LISTEN, DEVICE, RUN, Uint8Array.of(0)]],
    ['RUN in front of the devices', [LISTEN, RUN, DEVICE]],
    ['another command', [LISTEN, encodeCommand(resume), DEVICE, RUN]],
    ['a section that is not a device', [LISTEN, encodeSectionPart(2), encodeFooter(2), RUN]],
    ['devices without a last footer', [LISTEN, DEVICE.subarray(0, -1), RUN]],
    ['a footer alone', [LISTEN, encodeFooter(1), RUN]],
    ['LISTEN alone', [LISTEN]],
    ['cut inside RUN', [LISTEN, DEVICE, RUN.subarray(0, 3)]],
  ]
  for (const [what, parts] of cases)
    assert.throws(() => splitPackage(concat(parts), 1000), { code: 'PROTOCOL' }, what)
})

test('devices of our own guests: in any order, each once', () => {
  const bytes = concat([
    encodeDevice(1, 'cpu', 2, Uint8Array.of(1, 2)),
    encodeDevice(2, 'serial', 1, new Uint8Array(0)),
  ])
  assert.deepEqual(decodeDevices(bytes, { serial: 1, cpu: 3 }), [
    { id: 1, idstr: 'cpu', version: 2, bytes: Uint8Array.of(1, 2) },
    { id: 2, idstr: 'serial', version: 1, bytes: new Uint8Array(0) },
  ])
})

test('devices that the guest cannot take are refused', () => {
  const cpu = encodeDevice(1, 'cpu', 2, Uint8Array.of(1, 2))
  const long = encodeDevice(1, 'cpu', 1, new Uint8Array(4))
  long.set([0xff, 0xff, 0xff, 0xff], 17) // its length
  const cases: readonly [string, Uint8Array, Record<string, number>][] = [
    ['newer', cpu, { cpu: 1 }],
    ['unknown', cpu, { serial: 1 }],
    ['name of a built-in property', encodeDevice(1, 'constructor', 1, new Uint8Array(0)), {}],
    ['twice', concat([cpu, cpu]), { cpu: 2 }],
    ['missing', cpu, { cpu: 2, serial: 1 }],
    [
      'another instance',
      encodeSectionFull({ id: 1, idstr: 'cpu', instance: 1, version: 2 }, new Uint8Array(4)),
      { cpu: 2 },
    ],
    ['not a device', encodeSectionPart(1), { cpu: 2 }],
    ['body over the bound', long, { cpu: 1 }],
    ...Array.from({ length: cpu.length - 1 }, (_, i): [string, Uint8Array, Record<string, number>] => {
      return [`cut at ${i}`, cpu.subarray(0, i), { cpu: 2 }]
    }),
  ]
  for (const [what, bytes, known] of cases)
    assert.throws(() => decodeDevices(bytes, known), { code: 'PROTOCOL' }, what)
})
