// The description of the device sections that QEMU writes behind a precopy stream. Pure; any thread.
//
// Bodies of QEMU's devices do not say how long they are. The description does, in the order of the sections, and so a saved
// stream can be taken apart without knowing a single device. It stands at the end, so it is looked for backwards.
// Source: QEMU migration/savevm.c, `vmstate_save`, `qemu_savevm_state_complete_precopy_non_iterable`;
// migration/vmstate.c, `vmstate_save_state_v`.

import { LIMITS } from '../limits.js'
import { viewOf } from './bytes.js'
import { type NamedSection, RECORD_IDS } from './sections.js'
import { refuseAt } from './slice.js'

/** One SECTION_FULL of the stream. */
export interface DescribedSection {
  readonly idstr: string
  readonly instance: number
  /** Of the body, without header and footer. */
  readonly bodyBytes: number
}

const RECORD = 'VMDESCRIPTION'
const HEADER_BYTES = 5

/** Where the JSON of a complete stream begins; it goes on to the end. Undefined: there is none, as after postcopy. */
export function findVmDescription(stream: Uint8Array): number | undefined {
  const view = viewOf(stream)
  const last = stream.length - HEADER_BYTES
  const first = Math.max(1, last - LIMITS.vmDescriptionBytesMax)
  for (let at = last; at >= first; at--) {
    if (stream[at] !== RECORD_IDS.VMDESCRIPTION || stream[at - 1] !== RECORD_IDS.EOF) continue
    if (view.getUint32(at + 1) === last - at && stream[at + HEADER_BYTES] === '{'.charCodeAt(0)) {
      return at + HEADER_BYTES
    }
  }
  return undefined
}

/** The sections of a description, in the order of the stream. Errors: `ProtocolError` for what is no description. */
export function readDescribedSections(json: Uint8Array, offset = 0): readonly DescribedSection[] {
  let description: unknown
  try {
    description = JSON.parse(new TextDecoder().decode(json))
  } catch (error) {
    return refuseAt(offset, RECORD, 'not JSON', undefined, (error as Error).message)
  }
  const devices = objectOf(description).devices
  return arrayOf(devices).map((device) => {
    const { name, instance_id } = objectOf(device)
    if (typeof name !== 'string') return malformed('the name of a device', name)
    return { idstr: name, instance: countOf(instance_id), bodyBytes: bodyBytes(objectOf(device)) }
  })
}

/**
 * For `walkStream`: the length of each section's body, from the description.
 * Errors: `ProtocolError` when the sections of the stream are not those of the description.
 */
export function describedBodyBytes(sections: readonly DescribedSection[]): (section: NamedSection) => number {
  let next = 0
  return ({ id, idstr, instance }) => {
    const described = sections[next++]
    if (described?.idstr === idstr && described.instance === instance) return described.bodyBytes
    const expected = described === undefined ? 'no more sections' : `${described.idstr}/${described.instance}`
    return refuseAt(0, RECORD, `section ${id} is not the one described`, expected, `${idstr}/${instance}`)
  }
}

/** Only the outermost sizes count: the size of a field includes everything inside of it. */
function bodyBytes(layout: Json): number {
  if (layout.size !== undefined) return countOf(layout.size)
  let bytes = 0
  for (const field of arrayOf(layout.fields)) {
    const { size, array_len } = objectOf(field)
    bytes += countOf(size) * (array_len === undefined ? 1 : countOf(array_len))
  }
  for (const subsection of arrayOf(layout.subsections ?? [])) {
    const inner = objectOf(subsection)
    if (typeof inner.vmsd_name !== 'string') return malformed('the name of a subsection', inner.vmsd_name)
    // 05 · str8 name · u32 version · fields
    bytes += 1 + 1 + inner.vmsd_name.length + 4 + bodyBytes(inner)
  }
  return bytes
}

type Json = Readonly<Record<string, unknown>>

function objectOf(value: unknown): Json {
  return typeof value === 'object' && value !== null ? (value as Json) : malformed('an object', value)
}

function arrayOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : malformed('a list', value)
}

function countOf(value: unknown): number {
  return Number.isSafeInteger(value) && (value as number) >= 0
    ? (value as number)
    : malformed('a size', value)
}

function malformed(expected: string, got: unknown): never {
  return refuseAt(0, RECORD, 'malformed description', expected, typeof got)
}
