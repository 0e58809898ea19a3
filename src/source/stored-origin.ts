// RAM and device state of a parked guest. It does not run, so nothing is written, and stopping it is nothing. Source thread.

import { monotonicUs, realtimeUs } from '../os/clock.js'
import type { Bitmap } from '../ram/bitmap.js'
import type { Origin } from './origin.js'

export interface StoredState {
  /** Complete SECTION_FULL records. */
  readonly devices: Uint8Array
  readonly vmDescription: Uint8Array
  /** One bitmap a RAM block, one bit a target page: it is stored. All others are zero. */
  readonly present: readonly Bitmap[]
  /** As `Origin` has them. @throws ImageError when the page is not what was stored. */
  read: Origin['read']
  release: Origin['release']
  close(): void
}

export function createStoredOrigin({ devices, vmDescription, present, ...parts }: StoredState): Origin {
  return {
    begin(populated) {
      for (const [i, bitmap] of populated.entries()) bitmap.words.set(present[i]!.words)
    },
    collectWritten() {},
    stopAndSave: () => ({ stoppedAt: { monotonicUs: monotonicUs(), realtimeUs: realtimeUs() }, devices }),
    resume() {},
    runs: false,
    words: {
      ifKept: '. The image is as it was, and can be resumed',
      ifGone: '. The virtual machine may have run: it lacks RAM and cannot go on. The image is as it was',
    },
    pushZeroPages: false,
    saysStopTime: false,
    vmDescription,
    read: parts.read, // what is stored holds something; where zeros were there is nothing
    release: parts.release,
    close: parts.close,
  }
}
