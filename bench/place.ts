// Bulk receive-and-place: a C program sends page records over TCP on this host as fast as they are taken; the receiver,
// in C or the engine's, puts them into RAM under userfaultfd. Measured by the sender, until the PONG behind the last page.

import { encodeCommand } from '../src/wire/messages.js'
import { encodePackage } from '../src/wire/package.js'
import { encodeRamSetup } from '../src/wire/ram-setup.js'
import {
  END_OF_STREAM,
  encodeConfiguration,
  encodeFooter,
  encodeHeader,
  encodeSectionEnd,
  encodeSectionStart,
} from '../src/wire/sections.js'
import { BLOCK, MACHINE } from './bench-guest.js'
import type { Benchmark, Sample } from './benchmark.js'
import { cProgram, inputFile, nodeChild, runForJson, warmMemory, withRunning } from './programs.js'

const PAGES = 262_144
const PAGE_BYTES = 4096
const GiB = 2 ** 30
/** As in c/common.h. */
const RAM_SECTION_ID = 1
const EOS_WORD = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x10)
const PING = encodeCommand({ name: 'PING', value: 1 })

/** The stream up to the first page, after the switch; one PING at its end. */
function postcopyPrefix(): Uint8Array {
  const length = PAGES * PAGE_BYTES
  const content = encodePackage({ devices: new Uint8Array(0) })
  return Buffer.concat([
    encodeHeader(),
    encodeConfiguration({ machine: MACHINE }),
    encodeCommand({ name: 'OPEN_RETURN_PATH' }),
    encodeCommand({
      name: 'POSTCOPY_ADVISE',
      sizes: { pageSizeSummary: PAGE_BYTES, targetPageSize: PAGE_BYTES },
    }),
    encodeSectionStart({ id: RAM_SECTION_ID, idstr: 'ram', instance: 0, version: 4 }),
    encodeRamSetup([{ name: BLOCK, length, pageSize: PAGE_BYTES }], {
      postcopy: true,
      hostPageSize: PAGE_BYTES,
    }),
    encodeFooter(RAM_SECTION_ID),
    encodeCommand({ name: 'POSTCOPY_RAM_DISCARD', block: BLOCK, ranges: [{ start: 0, length }] }),
    encodeCommand({ name: 'PACKAGED', length: content.length }),
    content,
    PING,
  ])
}

function postcopySuffix(): Uint8Array {
  return Buffer.concat([
    encodeSectionEnd(RAM_SECTION_ID),
    EOS_WORD,
    encodeFooter(RAM_SECTION_ID),
    END_OF_STREAM,
  ])
}

/** `receiver` prints its port, takes one stream in and ends. */
async function measure(receiver: readonly string[], prefix: Uint8Array, suffix: Uint8Array): Promise<Sample> {
  const answers = '1'
  return withRunning(receiver, async (receiving) => {
    const port = await receiving.line()
    warmMemory() // some of it was free for too long while the receiver got ready
    const { ns, bytes } = await runForJson<{ ns: number; bytes: number }>([
      cProgram('stream-sender'),
      port,
      String(PAGES),
      answers,
      inputFile('prefix', prefix),
      inputFile('suffix', suffix),
    ])
    return { rate: bytes / GiB / (ns / 1e9) }
  })
}

export const place: Benchmark = {
  name: 'place',
  about: `${(PAGES * PAGE_BYTES) / 2 ** 20} MiB of page records from a C sender over TCP, placed by UFFDIO_COPY`,
  rounds: 7,
  metrics: [{ name: 'rate', unit: 'GiB/s' }],
  variants: [
    { name: 'c', run: () => measure([cProgram('place'), String(PAGES)], PING, END_OF_STREAM) },
    {
      name: 'engine',
      run: () => measure(nodeChild('place.child', String(PAGES)), postcopyPrefix(), postcopySuffix()),
    },
  ],
  ratios: [['engine', 'c']],
}
