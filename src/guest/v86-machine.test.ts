import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { GuestError } from '../errors.js'
import { ROM_BYTES } from './rom.js'
import { createV86Machine } from './v86-machine.js'

const MEMORY_BYTES = 2 * 1024 * 1024
const TIMEOUT = { timeout: 90_000 }

/** Real mode: sets flags, waits without changing them until the word at 0x500 is set, then prints their low byte. */
const FLAGS_PROGRAM = [
  ...[0x31, 0xc0], //             xor ax, ax
  ...[0x8e, 0xd8], //             mov ds, ax
  ...[0x8e, 0xd0], //             mov ss, ax
  ...[0xbc, 0x00, 0x70], //       mov sp, 0x7000
  ...[0xb0, 0x80], //             mov al, 0x80
  ...[0x2c, 0x81], //             sub al, 0x81       0xff: carry, sign, parity, half carry
  ...[0x8b, 0x0e, 0x00, 0x05], // wait: mov cx, [0x500]
  ...[0xe3, 0xfa], //             jcxz wait
  ...[0x9c, 0x58], //             pushf; pop ax
  ...[0xba, 0xf8, 0x03], //       mov dx, 0x3f8
  0xee, //                        out dx, al
  ...[0xeb, 0xfe], //             jmp $
]
const FLAGS = 0x97

async function flagsMachine() {
  const firmware = new Uint8Array(ROM_BYTES)
  firmware.set(FLAGS_PROGRAM)
  firmware.set([0xe9, 0x0d, 0x00], 0xfff0)
  const printed: number[] = []
  const machine = await createV86Machine({
    memoryBytes: MEMORY_BYTES,
    firmware: firmware.buffer,
    onSerialByte: (byte) => printed.push(byte),
  })
  return { machine, printed }
}

test('lazily computed flags survive a restore on a fresh machine, twice in a row', TIMEOUT, async () => {
  let from = await flagsMachine()
  from.machine.run()
  await sleep(50)
  from.machine.stop()
  for (let hop = 0; hop < 2; hop++) {
    const to = await flagsMachine()
    to.machine.ram().set(from.machine.ram())
    to.machine.restore(from.machine.save())
    from = to
  }
  from.machine.ram()[0x500] = 1
  from.machine.touchNextInstruction()
  from.machine.run()
  await sleep(50)
  from.machine.stop()
  assert.deepEqual(from.printed, [FLAGS])
})

test('the state holds no RAM, and restoring it leaves RAM alone', TIMEOUT, async () => {
  const { machine } = await flagsMachine()
  machine.ram().fill(0xa5, 0x1000, 0x2000)
  const state = machine.save()
  assert(state.length < 64 * 1024, `${state.length} bytes`)
  machine.restore(state)
  assert(
    machine
      .ram()
      .subarray(0x1000, 0x2000)
      .every((byte) => byte === 0xa5),
  )
})

test('a damaged state is refused', TIMEOUT, async () => {
  const { machine } = await flagsMachine()
  const state = machine.save()
  assert.throws(() => machine.restore(state.subarray(0, 100)), GuestError)
  assert.throws(() => machine.restore(new Uint8Array(3)), GuestError)
})

test('a stopped machine runs no further', TIMEOUT, async () => {
  const { machine, printed } = await flagsMachine()
  machine.run()
  await sleep(20)
  machine.stop()
  machine.ram()[0x500] = 1
  await sleep(20)
  assert.deepEqual(printed, [])
})
