import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { UsageError } from '../errors.js'
import { buildRom, checkRam, GUEST_PAGE_BYTES, ROM_BYTES, romRange } from './rom.js'

const MiB = 1024 * 1024
const RANGE = romRange(2 * MiB)
const PAGES = (RANGE.end - RANGE.start) / GUEST_PAGE_BYTES

/** RAM as the program leaves it when it is stopped after `stepPage` pages of pass `count`. */
function ramAt(count: number, stepPage: number): Uint8Array {
  const ram = new Uint8Array(2 * MiB)
  for (let page = 0; page < PAGES; page++) {
    ram[RANGE.start + page * GUEST_PAGE_BYTES] = page < stepPage ? count : count - 1
  }
  return ram
}

test('the firmware is 64 KiB and jumps from the reset vector to its first byte', () => {
  const rom = buildRom(RANGE)
  assert.equal(rom.length, ROM_BYTES)
  // jmp rel16 at 0xfff0 with 0x10000 - 0xfff3 to go.
  assert.deepEqual([...rom.subarray(0xfff0, 0xfff3)], [0xe9, 0x0d, 0x00])
  assert.equal(rom[0], 0xfa)
})

test('a range outside RAM, below 1 MiB or across pages is refused', () => {
  assert.deepEqual(romRange(128 * MiB), { start: MiB, end: 100 * MiB })
  for (const [start, end] of [
    [0, 2 * MiB],
    [MiB, 3 * MiB],
    [MiB, MiB],
    [MiB + 1, 2 * MiB],
  ]) {
    assert.throws(() => romRange(2 * MiB, start, end), UsageError)
  }
})

test('RAM is right whether the program is stopped in a pass, between passes or at the wrap of the count', () => {
  for (const [count, stepPage, passes] of [
    [7, 100, 6],
    [7, PAGES, 6],
    [7, PAGES, 7],
    [7, 1, 262],
    [256, 100, 255],
    [0, PAGES, 0],
  ] as const) {
    const { wrongAt, detail } = checkRam(ramAt(count, stepPage), RANGE, passes)
    assert.equal(wrongAt, undefined, `${count} ${stepPage} ${passes}: ${detail}`)
  }
})

test('the first wrong byte is found', () => {
  const spoil = (change: (ram: Uint8Array) => void) => {
    const ram = ramAt(7, 100)
    change(ram)
    return checkRam(ram, RANGE, 6).wrongAt
  }
  const pageAt = (page: number) => RANGE.start + page * GUEST_PAGE_BYTES
  assert.equal(
    spoil((ram) => (ram[pageAt(20)] = 5)),
    pageAt(20),
    'a count too low',
  )
  assert.equal(
    spoil((ram) => (ram[pageAt(20)] = 6)),
    pageAt(21),
    'a stale page before the step',
  )
  assert.equal(
    spoil((ram) => (ram[pageAt(120)] = 7)),
    pageAt(120),
    'a step up',
  )
  assert.equal(
    spoil((ram) => (ram[pageAt(120)] = 5)),
    pageAt(120),
    'a second step',
  )
  assert.equal(
    spoil((ram) => (ram[pageAt(30) + 4095] = 1)),
    pageAt(30) + 4095,
    'a byte that was never written',
  )
  assert.notEqual(checkRam(ramAt(7, 100), RANGE, 7).wrongAt, undefined, 'a pass too few')
})

/** Path of a QEMU, or why there is none. */
function findQemu(): { path: string } | { skip: string } {
  const path = process.env.FARFAULT_QEMU ?? 'qemu-system-x86_64'
  try {
    execFileSync(path, ['--version'], { stdio: 'ignore' })
    return { path }
  } catch {
    return { skip: `no ${path} on this machine` }
  }
}

const qemu = findQemu()
test('the same firmware runs in QEMU', { skip: 'skip' in qemu && qemu.skip, timeout: 90_000 }, async () => {
  assert('path' in qemu)
  const folder = mkdtempSync(join(tmpdir(), 'farfault-rom-'))
  const file = (name: string) => join(folder, name)
  writeFileSync(file('rom'), buildRom(romRange(16 * MiB)))
  const args = `-accel tcg -nodefaults -display none -vga none -m 16 -qmp stdio -bios ${file('rom')}`
  const child = spawn(qemu.path, [...args.split(' '), '-serial', `file:${file('serial')}`])
  try {
    let answers = ''
    child.stdout.on('data', (text) => {
      answers += text
    })
    const say = (execute: string, given = {}) =>
      child.stdin.write(`${JSON.stringify({ execute, arguments: given })}\n`)
    say('qmp_capabilities')
    await sleep(1500)
    say('stop')
    say('pmemsave', { val: 0, size: 16 * MiB, filename: file('ram') })
    say('quit')
    await new Promise((resolve) => child.on('exit', resolve))
    assert(!answers.includes('"error"'), answers)
    const letters = readFileSync(file('serial'), 'latin1')
    assert(letters.length > 26, `only ${letters.length} letters`)
    assert.equal(letters, alphabet(letters.length))
    const { wrongAt, detail } = checkRam(readFileSync(file('ram')), romRange(16 * MiB), letters.length)
    assert.equal(wrongAt, undefined, detail)
  } finally {
    child.kill('SIGKILL')
    rmSync(folder, { recursive: true })
  }
})

function alphabet(length: number): string {
  return Array.from({ length }, (_, i) => String.fromCharCode(0x61 + (i % 26))).join('')
}
