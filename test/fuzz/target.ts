// What a target of the fuzz harness is: something that is fed bytes which a hostile peer, or a damaged file, may have.

import { ChannelError, FarfaultError, ImageError, SystemError } from '../../src/errors.js'
import type { Random } from '../engine/random.js'

export interface Target {
  readonly name: string
  /** Why it cannot run here, or false. */
  readonly skip: string | false
  /** Share of the time when several targets have a given time together. */
  readonly share: number
  open(): Promise<OpenTarget> | OpenTarget
}

export interface OpenTarget {
  /**
   * One case, made of `random` alone. Answers how it ended: `sound`, or the error by which the bytes were refused.
   * Whatever it throws is a finding.
   */
  run(random: Random): Ending | Promise<Ending>
  close(): void | Promise<void>
}

export type Ending = 'sound' | FarfaultError

/** The only ways for bad bytes to end. @throws anything else: it is a finding. */
export function assertTyped(error: unknown): FarfaultError {
  // A failed system call is no answer to bytes: something was done with them that should have been refused before.
  if (error instanceof FarfaultError && !(error instanceof SystemError)) return error
  throw error instanceof Error ? error : new Error(`thrown: ${error}`)
}

/** Runs it; its typed error, or what it returned. */
export function refusalOf<T>(run: () => T): { readonly value: T } | { readonly error: FarfaultError } {
  try {
    return { value: run() }
  } catch (error) {
    return { error: assertTyped(error) }
  }
}

/** The kind of an ending, without the numbers and names in it. */
export function kindOf(ending: Ending): string {
  if (ending === 'sound') return ending
  const { name, message } = ending
  if (ending instanceof ChannelError && message.startsWith('stream ended')) return `${name}: stream ended`
  const said = ending instanceof ImageError ? message.replace(/^.*? offset \d+: /s, '') : message
  return `${name}: ${said.replace(/[\d"].*/s, '').trim()}`
}
