// A guest as the commands follow it: what it printed, and whether it broke. Main thread.

import { setTimeout as sleep } from 'node:timers/promises'
import { messageOf } from '../errors.js'
import type { GuestCheck, GuestHandle } from '../index.js'
import type { SideGuest } from './reports.js'
import { followPrinted, type Printed } from './serial.js'

/** How often progress is looked at, ms; the guest's own thread stores it every 50 ms. */
const LOOK_MS = 50

export interface FollowedGuest {
  readonly handle: GuestHandle
  readonly memoryBytes: number
  readonly printed: Printed
  /** What the guest said when it broke. */
  readonly failure: Error | undefined
  describe(here: boolean): SideGuest
  /** Does it get on? Waits at least `minMs`, and up to `maxMs` for progress. */
  getsOn(minMs: number, maxMs: number): Promise<boolean>
  /** Stops the guest and looks at all its RAM. Never rejects: a guest that cannot be checked is not right. */
  stopAndCheck(): Promise<GuestCheck>
}

export function followGuest(handle: GuestHandle, onOutput?: (bytes: Uint8Array) => void): FollowedGuest {
  const printed = followPrinted()
  const memoryBytes = handle.blocks.reduce((sum, { length }) => sum + length, 0)
  let failure: Error | undefined
  handle.on('failed', (error) => {
    failure ??= error
  })
  handle.on('output', (bytes) => {
    printed.add(bytes)
    onOutput?.(bytes)
  })
  return {
    handle,
    memoryBytes,
    printed,
    get failure() {
      return failure
    },
    describe: (here) => ({
      machine: handle.machine,
      memoryBytes,
      here,
      progress: handle.progress(),
      printed: printed.summary(),
    }),
    async getsOn(minMs, maxMs) {
      const start = handle.progress()
      const startMs = performance.now()
      const elapsedMs = () => performance.now() - startMs
      while (elapsedMs() < minMs || (handle.progress() === start && elapsedMs() < maxMs)) {
        await sleep(LOOK_MS)
        if (failure !== undefined) return false
      }
      return handle.progress() !== start
    },
    async stopAndCheck() {
      try {
        await handle.stop()
        if (failure !== undefined) throw failure
        return await handle.check()
      } catch (error) {
        return { ok: false, detail: messageOf(error) }
      }
    },
  }
}
