// A state machine that is a table, over one cell of shared memory. Any thread may step it, any thread may look.
//
// `step` looks the event up first and moves after: an event that is not legal throws and leaves the state alone.

import { IllegalTransition } from './errors.js'

/** From state, by event, to state. States count from 0 in the order of the keys; the first is the start. */
export type Table = { readonly [from: string]: { readonly [event: string]: string } }
export type StateOf<T extends Table> = keyof T & string
export type EventOf<T extends Table> = { [S in keyof T]: keyof T[S] }[keyof T] & string

export interface Machine<T extends Table> {
  readonly name: string
  state(): StateOf<T>
  /** Move, and return the new state. @throws IllegalTransition without moving. */
  step(event: EventOf<T>): StateOf<T>
  /** True when `event` is legal now. */
  can(event: EventOf<T>): boolean
  is(...states: StateOf<T>[]): boolean
}

export type OnMove<T extends Table> = (from: StateOf<T>, event: EventOf<T>, to: StateOf<T>) => void

/** `cell[index]` holds the number of the present state; it may be shared by several machines over the same table. */
export function createMachine<T extends Table>(
  name: string,
  table: T,
  cell: Int32Array,
  index: number,
  onMove?: OnMove<T>,
): Machine<T> {
  const states = Object.keys(table) as StateOf<T>[]
  const now = (): StateOf<T> => states[Atomics.load(cell, index)]!
  const target = (from: StateOf<T>, event: EventOf<T>): StateOf<T> | undefined => {
    const row = table[from]!
    return Object.hasOwn(row, event) ? (row[event] as StateOf<T>) : undefined
  }
  return {
    name,
    state: now,
    can: (event) => target(now(), event) !== undefined,
    is: (...wanted) => wanted.includes(now()),
    step(event) {
      for (;;) {
        const from = now()
        const to = target(from, event)
        if (to === undefined) throw new IllegalTransition(name, from, event)
        const seen = Atomics.compareExchange(cell, index, states.indexOf(from), states.indexOf(to))
        if (seen !== states.indexOf(from)) continue // another thread moved it first: look again
        onMove?.(from, event, to)
        return to
      }
    },
  }
}

/** The table as a mermaid state diagram, for the documentation. */
export function diagram(table: Table): string {
  const lines = ['stateDiagram-v2', `  [*] --> ${Object.keys(table)[0]}`]
  for (const [from, row] of Object.entries(table)) {
    if (Object.keys(row).length === 0) lines.push(`  ${from} --> [*]`)
    for (const [event, to] of Object.entries(row)) lines.push(`  ${from} --> ${to}: ${event}`)
  }
  return lines.join('\n')
}
