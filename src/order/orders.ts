// In which order pages go, as a table: what a demanded page brings with it, what goes before the scan, and which way the
// scan goes. Pure; any thread.

import { UsageError } from '../errors.js'
import { LIMITS } from '../limits.js'

export interface OrderSpec {
  /** A demanded page brings the others of its aligned group of so many pages; 1: it comes alone. A power of two. */
  readonly aroundPages: number
  /** Pages that were asked for in earlier runs go first, where they are known. */
  readonly recorded: boolean
  /** `behind`: on from the last demanded page, as QEMU does. `bubbling`: outward from each of the last few. */
  readonly scan: 'behind' | 'bubbling'
}

interface OrderRow {
  readonly around: boolean
  readonly recorded: boolean
  readonly scan: OrderSpec['scan']
  readonly summary: string
}

export const ORDERS = {
  linear: {
    ...{ around: false, recorded: false, scan: 'behind' },
    summary: "QEMU's: on from the last page that was asked for",
  },
  'fault-around': {
    ...{ around: true, recorded: false, scan: 'behind' },
    summary: 'a page that is asked for brings its neighbours',
  },
  bubbling: {
    ...{ around: false, recorded: false, scan: 'bubbling' },
    summary: 'outward, both ways, from each of the last few pages that were asked for',
  },
  recorded: {
    ...{ around: false, recorded: true, scan: 'behind' },
    summary: 'what earlier runs asked for goes first',
  },
  'recorded-around': {
    ...{ around: true, recorded: true, scan: 'behind' },
    summary: 'the same, and a page that they did not ask for brings its neighbours',
  },
} as const satisfies Readonly<Record<string, OrderRow>>

export type OrderName = keyof typeof ORDERS
export const ORDER_NAMES = Object.keys(ORDERS) as readonly OrderName[]
/** What a user may choose: a name of the table, or the one that fits what is known. */
export type OrderChoice = OrderName | 'adaptive'
export const ORDER_CHOICES: readonly OrderChoice[] = ['adaptive', ...ORDER_NAMES]

/** For a guest that runs: nothing has been recorded of it. */
export type LiveOrderChoice = Exclude<OrderChoice, 'recorded' | 'recorded-around'>
export const LIVE_ORDER_CHOICES: readonly LiveOrderChoice[] = ORDER_CHOICES.filter(
  (choice): choice is LiveOrderChoice => choice === 'adaptive' || !ORDERS[choice].recorded,
)

/** Pages in a group unless the user says otherwise: 256 KiB. */
export const AROUND_PAGES = 64
/** Of the first few pages each brings one group: a guest that wakes up wants few, and others would be in the way of these. */
export const SMALL_REQUESTS = 64
/** What each later one brings at least, in groups. */
export const GROUPS_LATER = 4

/** In a chunk it is looked after so many whether somebody asks for a page: to put a whole one together takes longer than a fault. */
export const LOOK_PAGES = 16

/** Along with a requested page go the others of its aligned group of so many: the next request waits for all of them. */
export const NEAR_PAGES = 16
/** And none does on a link that holds less than this at once: there that would be long. */
export const NEAR_WINDOW_BYTES_MIN = 256 * 1024

/**
 * What is likely goes in chunks of at least so many pages, even where the window is small: in parts it comes too late. A busy
 * destination has a small window, and yet places so much in the time of a few faults.
 */
export const LIKELY_CHUNK_PAGES = AROUND_PAGES

/**
 * What is likely to be wanted at once goes before the device state, as long as that takes little time: each page spares the
 * guest a wait, and nothing else goes on there that it would disturb. So much later may the guest come for it, ms; a user who would
 * rather have a busy guest later, and then without waits, says more.
 */
export const AHEAD_MS = 6

/**
 * What else is likely waits until the destination has loaded the device state: otherwise the two compete for its CPUs, and the guest
 * runs later (RESUME after 200 ms instead of 400 on a busy machine). On a long link its word for it takes a round trip, which
 * is not waited for longer than this, ms.
 */
export const LIKELY_HOLD_MS = 50

/** What is known when the order is chosen, and which one fits: measured, see bench/README.md. */
const ADAPTIVE = {
  /** Which pages earlier runs asked for. */
  record: 'recorded-around',
  /** Some of them: the run that noted them ended early, so this one notes the rest. */
  unsettled: 'recorded',
  /** Nothing, and this run is to find that out: no page may come that hides whether the guest wants it. */
  recording: 'linear',
  nothing: 'fault-around',
  /** The guest runs here: the push never pauses, and what is near to a demanded page is soon there in any case. */
  live: 'linear',
} as const satisfies Readonly<Record<string, OrderName>>

export const chooseOrder = (choice: OrderChoice, known: keyof typeof ADAPTIVE): OrderName =>
  choice === 'adaptive' ? ADAPTIVE[known] : choice

/** @throws UsageError for a group size that cannot be. */
export function orderSpec(name: OrderName, aroundPages: number = AROUND_PAGES): OrderSpec {
  const max = LIMITS.aroundPagesMax
  if (!Number.isInteger(Math.log2(aroundPages)) || aroundPages > max)
    throw new UsageError(`aroundPages must be a power of two of at most ${max}, got ${aroundPages}`)
  const { around, recorded, scan } = ORDERS[name]
  return { aroundPages: around ? aroundPages : 1, recorded, scan }
}

export const bringsNeighbours = ({ aroundPages }: OrderSpec): boolean => aroundPages > 1
