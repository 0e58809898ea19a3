// The ROM guest: the smallest program that proves its own RAM. Pure; imported on any thread.
//
// It runs from a 64 KiB firmware image, the same bytes in v86 (option `bios`) and in QEMU (`-bios`). After reset it
// enters flat protected mode and then passes over its range for ever: one byte up in each page, and after each pass
// one letter (a…z, round again) on the first serial port. Whoever stops it finds pages that agree, or that step down
// by one exactly once, where the pass had got to; a lost or stale page breaks that.

import { UsageError } from '../errors.js'

const KiB = 1024
const MiB = 1024 * KiB

export const ROM_BYTES = 64 * KiB
/** Where a firmware image of 64 KiB appears below 1 MiB; the program runs there. */
export const ROM_BASE = 1 * MiB - ROM_BYTES
export const GUEST_PAGE_BYTES = 4 * KiB
/** The range is above the first MiB, where a PC has its ROMs and video memory. */
const START_MIN = 1 * MiB
const END_DEFAULT = 100 * MiB
const RESET_VECTOR = 0xfff0
const COM1 = 0x3f8
/**
 * Cheap instructions for each page. v86 can be stopped every 100,000 instructions only, and an access to a page anew
 * costs it a hundred others: a whole pass would be one slice of several milliseconds, which is downtime.
 */
const IDLE_ROUNDS = 8

/** Physical addresses, both multiples of 4096: pages of [start, end) are counted up. */
export interface RomRange {
  readonly start: number
  readonly end: number
}

/** The range a guest of that much RAM gets, defaults filled in. Throws UsageError when it does not fit. */
export function romRange(
  memoryBytes: number,
  start = START_MIN,
  end = Math.min(END_DEFAULT, memoryBytes),
): RomRange {
  const aligned = start % GUEST_PAGE_BYTES === 0 && end % GUEST_PAGE_BYTES === 0
  if (!aligned || start < START_MIN || end <= start || end > memoryBytes) {
    throw new UsageError(
      `the ROM guest counts whole pages of ${START_MIN} <= start < end <= ${memoryBytes} bytes of RAM; ` +
        `start is ${start}, end is ${end}`,
    )
  }
  return { start, end }
}

const CODE_SELECTOR = 0x08
const DATA_SELECTOR = 0x10
/** Null, flat 4 GiB code, flat 4 GiB data. */
const GDT = [0x00000000, 0x00000000, 0x0000ffff, 0x00cf9a00, 0x0000ffff, 0x00cf9200]

/** How an operand follows its opcode. `rel8` and `rel16` count from the end of the instruction. */
const OPERANDS = {
  none: { bytes: 0, base: () => 0 },
  imm8: { bytes: 1, base: () => 0 },
  imm16: { bytes: 2, base: () => 0 },
  imm32: { bytes: 4, base: () => 0 },
  rel8: { bytes: 1, base: (next: number) => next },
  rel16: { bytes: 2, base: (next: number) => next },
  /** Offset in the ROM's segment. */
  near16: { bytes: 2, base: () => 0 },
  /** Physical address of something in the ROM. */
  linear32: { bytes: 4, base: () => -ROM_BASE },
} as const

/** Encodings from Intel's manual, volume 2; only what the program needs. `16:` runs before protected mode. */
const INSTRUCTIONS = {
  '16: cli': { opcode: [0xfa], operand: 'none' },
  '16: lgdt cs:[m]': { opcode: [0x2e, 0x66, 0x0f, 0x01, 0x16], operand: 'near16' },
  '16: mov eax, cr0': { opcode: [0x0f, 0x20, 0xc0], operand: 'none' },
  '16: or al, imm': { opcode: [0x0c], operand: 'imm8' },
  '16: mov cr0, eax': { opcode: [0x0f, 0x22, 0xc0], operand: 'none' },
  '16: jmp far m, then selector': { opcode: [0x66, 0xea], operand: 'linear32' },
  '16: jmp': { opcode: [0xe9], operand: 'rel16' },
  'mov ax, imm': { opcode: [0x66, 0xb8], operand: 'imm16' },
  'mov ds, ax': { opcode: [0x8e, 0xd8], operand: 'none' },
  'mov es, ax': { opcode: [0x8e, 0xc0], operand: 'none' },
  'mov ss, ax': { opcode: [0x8e, 0xd0], operand: 'none' },
  'xor esi, esi': { opcode: [0x31, 0xf6], operand: 'none' },
  'inc esi': { opcode: [0x46], operand: 'none' },
  'mov edi, imm': { opcode: [0xbf], operand: 'imm32' },
  'inc byte [edi]': { opcode: [0xfe, 0x07], operand: 'none' },
  'add edi, imm': { opcode: [0x81, 0xc7], operand: 'imm32' },
  'cmp edi, imm': { opcode: [0x81, 0xff], operand: 'imm32' },
  'mov ecx, imm': { opcode: [0xb9], operand: 'imm32' },
  'dec ecx': { opcode: [0x49], operand: 'none' },
  'mov bl, imm': { opcode: [0xb3], operand: 'imm8' },
  'inc bl': { opcode: [0xfe, 0xc3], operand: 'none' },
  'cmp bl, imm': { opcode: [0x80, 0xfb], operand: 'imm8' },
  'mov dx, imm': { opcode: [0x66, 0xba], operand: 'imm16' },
  'mov al, bl': { opcode: [0x88, 0xd8], operand: 'none' },
  'out dx, al': { opcode: [0xee], operand: 'none' },
  jb: { opcode: [0x72], operand: 'rel8' },
  jnz: { opcode: [0x75], operand: 'rel8' },
  jmp: { opcode: [0xeb], operand: 'rel8' },
  '.u16': { opcode: [], operand: 'imm16' },
  '.u32': { opcode: [], operand: 'imm32' },
  '.linear32': { opcode: [], operand: 'linear32' },
} as const satisfies Record<string, { opcode: readonly number[]; operand: keyof typeof OPERANDS }>

type Mnemonic = keyof typeof INSTRUCTIONS
/** An instruction with a number or a label as its operand, or, alone in a line, a label that is defined there. */
type Line = readonly [Mnemonic, (number | string)?] | `${string}:`

/** `esi` counts finished passes, `edi` is the page being counted, `bl` the next letter. No stack, no interrupts. */
function program(range: RomRange): readonly Line[] {
  return [
    'reset:',
    ['16: cli'],
    ['16: lgdt cs:[m]', 'gdtr'],
    ['16: mov eax, cr0'],
    ['16: or al, imm', 1],
    ['16: mov cr0, eax'],
    ['16: jmp far m, then selector', 'flat'],
    ['.u16', CODE_SELECTOR],
    'flat:',
    ['mov ax, imm', DATA_SELECTOR],
    ['mov ds, ax'],
    ['mov es, ax'],
    ['mov ss, ax'],
    ['xor esi, esi'],
    'alphabet:',
    ['mov bl, imm', 0x61],
    'pass:',
    ['mov edi, imm', range.start],
    'page:',
    ['inc byte [edi]'],
    ['mov ecx, imm', IDLE_ROUNDS],
    'idle:',
    ['dec ecx'],
    ['jnz', 'idle'],
    ['add edi, imm', GUEST_PAGE_BYTES],
    ['cmp edi, imm', range.end],
    ['jb', 'page'],
    ['inc esi'],
    ['mov dx, imm', COM1],
    ['mov al, bl'],
    ['out dx, al'],
    ['inc bl'],
    ['cmp bl, imm', 0x7b],
    ['jb', 'pass'],
    ['jmp', 'alphabet'],
    'gdtr:',
    ['.u16', GDT.length * 4 - 1],
    ['.linear32', 'gdt'],
    'gdt:',
    ...GDT.map((half): Line => ['.u32', half]),
  ]
}

function lineBytes([mnemonic]: readonly [Mnemonic, ...unknown[]]): number {
  const { opcode, operand } = INSTRUCTIONS[mnemonic]
  return opcode.length + OPERANDS[operand].bytes
}

/** Two passes: addresses of the labels, then the bytes. */
function assemble(
  lines: readonly Line[],
  image: Uint8Array,
  origin: number,
  labels: Map<string, number>,
): void {
  let at = origin
  for (const line of lines) {
    if (typeof line === 'string') labels.set(line.slice(0, -1), at)
    else at += lineBytes(line)
  }
  at = origin
  for (const line of lines) {
    if (typeof line === 'string') continue
    const [mnemonic, value = 0] = line
    const { opcode, operand } = INSTRUCTIONS[mnemonic]
    const { bytes, base } = OPERANDS[operand]
    const next = at + lineBytes(line)
    const target = typeof value === 'number' ? value : labels.get(value)!
    const encoded = target - base(next)
    image.set(opcode, at)
    for (let i = 0; i < bytes; i++) image[next - bytes + i] = encoded >> (8 * i)
    at = next
  }
}

/** The firmware image: 65,536 bytes, program at its beginning, reset vector 16 bytes before its end. */
export function buildRom(range: RomRange): Uint8Array<ArrayBuffer> {
  const image = new Uint8Array(ROM_BYTES)
  const labels = new Map<string, number>()
  assemble(program(range), image, 0, labels)
  assemble([['16: jmp', 'reset']], image, RESET_VECTOR, labels)
  return image
}

export interface RomCheck {
  /** Physical address of the first byte that is wrong; `undefined` when all is well. */
  readonly wrongAt: number | undefined
  readonly detail: string
}

const ZEROS = Buffer.alloc(GUEST_PAGE_BYTES)

/**
 * Is RAM what the program must have left? Every page of the range holds its count in byte 0 and zeros elsewhere; the
 * counts are all equal, or those from one page on are one less (mod 256).
 *
 * With `passes`, the number of finished passes, the counts must also be the right ones: a page past the step has been
 * counted exactly `passes` times. Without a step the pass has just begun or just ended.
 */
export function checkRam(ram: Uint8Array, range: RomRange, passes?: number): RomCheck {
  const bytes = Buffer.from(ram.buffer, ram.byteOffset, ram.byteLength)
  const first = bytes[range.start]!
  let count = first
  let stepAt: number | undefined
  for (let page = range.start; page < range.end; page += GUEST_PAGE_BYTES) {
    const got = bytes[page]!
    if (got !== count) {
      const below = (count + 255) & 0xff
      if (stepAt !== undefined || got !== below) {
        return wrong(page, `count ${got}, expected ${stepAt === undefined ? `${count} or ${below}` : count}`)
      }
      stepAt = page
      count = got
    }
    if (bytes.compare(ZEROS, 1, GUEST_PAGE_BYTES, page + 1, page + GUEST_PAGE_BYTES) !== 0) {
      let at = page + 1
      while (bytes[at] === 0) at++
      return wrong(at, `byte ${bytes[at]}, expected 0`)
    }
  }
  if (passes !== undefined) {
    const finished = passes & 0xff
    const justEnded = stepAt === undefined && count === ((finished + 1) & 0xff)
    if (count !== finished && !justEnded) {
      return wrong(
        range.end - GUEST_PAGE_BYTES,
        `count ${count} after ${passes} passes, expected ${finished}`,
      )
    }
  }
  const pages = (range.end - range.start) / GUEST_PAGE_BYTES
  const where = stepAt === undefined ? 'between two passes' : `in a pass, at ${hex(stepAt)}`
  return { wrongAt: undefined, detail: `${pages} pages hold count ${first}, stopped ${where}` }
}

function wrong(at: number, what: string): RomCheck {
  return { wrongAt: at, detail: `guest RAM is wrong at ${hex(at)}: ${what}` }
}

function hex(address: number): string {
  return `0x${address.toString(16)}`
}
