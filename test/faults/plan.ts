// What is to go wrong, and where: small objects that a test writes down or makes of a seed.

import type { RecordKind } from './records.js'

export type Direction = 'forward' | 'back'

/** `main`, or the second connection of postcopy-preempt. */
export type ChannelName = 'main' | 'preempt'

export type Action =
  /** Break the connection. RST loses what is on its way, FIN lets it arrive at the destination. Unix sockets have no RST. */
  | { readonly do: 'cut'; readonly by: 'rst' | 'fin' }
  /** Let `bytes` of the record through and then end the connection. */
  | { readonly do: 'truncate'; readonly bytes: number }
  /** Hold this record, and all behind it, back once. */
  | { readonly do: 'stall'; readonly ms: number }
  /** From here on each record arrives so much later. */
  | { readonly do: 'delay'; readonly ms: number }
  /** Flip a bit; counted from the first byte's lowest, modulo the length. */
  | { readonly do: 'corrupt'; readonly bit: number }

/** The package has gone through, whole; the destination has said that its devices are loaded, so that it runs. */
export type Point = 'start' | 'package' | 'loaded'

export interface Fault {
  readonly channel: ChannelName
  readonly direction: Direction
  /** Connections of this kind before it: 0 (default) is the first, 1 the first recovery, … */
  readonly connection?: number
  /** Records before it, of `kind` if one is given … */
  readonly after: number
  readonly kind?: RecordKind
  /** … counted from the start of the connection (default), or from a point that the migration has passed. */
  readonly from?: Point
  readonly action: Action
}

export type FaultPlan = readonly Fault[]

export interface FaultTrigger {
  /** The fault that happens at this record, if one does. Every record must be shown, in order. */
  at(
    where: { channel: ChannelName; direction: Direction; connection: number; passed: ReadonlySet<Point> },
    kind: RecordKind,
  ): Fault | undefined
  /** Faults that have happened. */
  readonly fired: readonly Fault[]
}

/** Each fault happens once. */
export function createTrigger(plan: FaultPlan): FaultTrigger {
  const seen = new Map(plan.map((fault) => [fault, 0]))
  const fired: Fault[] = []
  return {
    fired,
    at({ channel, direction, connection, passed }, kind) {
      let found: Fault | undefined
      for (const [fault, count] of seen) {
        const { from = 'start' } = fault
        if (fault.channel !== channel || fault.direction !== direction) continue
        if ((fault.connection ?? 0) !== connection || (fault.kind ?? kind) !== kind) continue
        if (!passed.has(from)) continue
        seen.set(fault, count + 1)
        if (found !== undefined || count !== fault.after) continue
        found = fault
        fired.push(fault)
      }
      return found
    },
  }
}
