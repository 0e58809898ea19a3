// Trace events: a table of name and arguments, one per observable step. Any thread.
//
// Off unless the environment variable FARFAULT_TRACE names events: a comma-separated list of names, `*` at the end
// of one matches the rest (`postcopy_*`, `*`). Each event is a line on standard error:
//   <monotonic µs> <thread> <name> <argument>=<value> …
// Call sites on hot paths ask `tracing()` first, so that a disabled event costs one load.

import { writeSync } from 'node:fs'
import { threadId } from 'node:worker_threads'

export const TRACE_EVENTS = {
  // destination: host check, RAM, userfaultfd (names as QEMU's, so that its documentation and habits apply)
  postcopy_init_range: ['block', 'address', 'offset', 'length'],
  postcopy_nhp_range: ['block', 'address', 'offset', 'length'],
  postcopy_cleanup_range: ['block', 'address', 'offset', 'length'],
  postcopy_ram_enable_notify: [],
  postcopy_ram_fault_thread_entry: [],
  postcopy_ram_fault_thread_exit: [],
  postcopy_ram_fault_thread_quit: [],
  postcopy_ram_fault_thread_request: ['address', 'block', 'offset', 'thread'],
  postcopy_place_page: ['block', 'offset', 'pages'],
  postcopy_place_page_zero: ['block', 'offset', 'pages'],
  postcopy_ram_incoming_cleanup_entry: [],
  postcopy_ram_incoming_cleanup_closeuf: [],
  postcopy_ram_incoming_cleanup_exit: [],
  postcopy_balloon_hold: ['hold'],
  loadvm_process_command: ['command', 'offset'],
  loadvm_handle_cmd_packaged: ['length'],
  loadvm_postcopy_ram_handle_discard: ['block', 'ranges'],
  ram_discard_range: ['block', 'start', 'length'],
  migrate_send_rp_message: ['message'],
  // source
  postcopy_discard_send_range: ['block', 'startPage', 'pages'],
  postcopy_discard_send_finish: ['block', 'ranges', 'commands'],
  postcopy_start: ['reason'],
  migration_pass: ['pass', 'dirtyPages'],
  migrate_handle_rp_req_pages: ['block', 'start', 'length'],
  get_queued_page: ['block', 'page'],
  get_queued_page_not_dirty: ['block', 'page'],
  source_return_path_pong: ['value'],
  source_return_path_shut: ['value'],
  // both
  migrate_set_state: ['machine', 'from', 'event', 'to'],
} as const satisfies Record<string, readonly string[]>

export type TraceName = keyof typeof TRACE_EVENTS
type TraceValue = string | number | boolean
type Values<T extends readonly string[]> = { -readonly [K in keyof T]: TraceValue }

const wanted = (process.env.FARFAULT_TRACE ?? '').split(',').filter((pattern) => pattern !== '')
const enabled = new Set(
  (Object.keys(TRACE_EVENTS) as TraceName[]).filter((name) =>
    wanted.some((p) => (p.endsWith('*') ? name.startsWith(p.slice(0, -1)) : p === name)),
  ),
)
const anyEnabled = enabled.size > 0

/** True when any event is on: the guard of hot paths. */
export const tracing = (): boolean => anyEnabled

export function trace<N extends TraceName>(name: N, ...values: Values<(typeof TRACE_EVENTS)[N]>): void {
  if (!anyEnabled || !enabled.has(name)) return
  const [seconds, nanoseconds] = process.hrtime()
  const fields = TRACE_EVENTS[name]
    .map((field, i) => ` ${field}=${format((values as readonly TraceValue[])[i]!)}`)
    .join('')
  writeSync(2, `${seconds * 1e6 + Math.floor(nanoseconds / 1e3)} t${threadId} ${name}${fields}\n`)
}

function format(value: TraceValue): string {
  if (typeof value === 'number' && value > 0xffff_ffff) return `0x${value.toString(16)}` // addresses
  return String(value)
}
