// What a parking counts and how it ends, as plain data. Types and tables; any thread.

/** Counters in shared memory; the park thread writes them. */
export const PARK_STATS = [
  /** Stream bytes taken in. */
  'bytes',
  /** Sum of all RAM blocks; 0 before they are known. */
  'memoryBytes',
  /** CLOCK_MONOTONIC, µs; 0 before it. */
  'connectedAtUs',
  /** The whole stream has come and the image is being completed; CLOCK_MONOTONIC, µs. */
  'storingAtUs',
] as const
export type ParkStat = (typeof PARK_STATS)[number]

export interface ParkReport {
  readonly ok: boolean
  /** A sentence, when `ok` is false. */
  readonly error?: string
  /** Empty when nothing has come. */
  readonly machine: string
  /** How the stream ended; `none` when it did not get there. */
  readonly mode: 'none' | 'precopy' | 'postcopy'
  /** Sum of all RAM blocks. */
  readonly memoryBytes: number
  /** Received. */
  readonly bytes: number
  /** Of the image: its length, and what it takes on disk. 0 when there is none. */
  readonly fileBytes: number
  readonly diskBytes: number
  readonly pages: { readonly normal: number; readonly zero: number }
  /** The source waits for an answer before it lets go of its guest. Without one it cannot know of a failure at the end. */
  readonly returnPath: boolean
  /** From the connection to the image under its name, on disk. */
  readonly durationMs: number
}
