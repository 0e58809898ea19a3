// Hears of every guest thread that stalls on an absent page, and asks the source for that page. Destination thread;
// never blocks. `requested` says what has been asked for: what is outstanding is `requested & ~received`.

import { GuestError } from '../errors.js'
import { monotonicUs } from '../os/clock.js'
import type { UserfaultfdOperations } from '../os/userfaultfd.js'
import { createEventBatch } from '../os/userfaultfd-events.js'
import type { Bitmap } from '../ram/bitmap.js'
import { blockAt, type RamBlock, TARGET_PAGE_BYTES } from '../ram/block.js'
import type { Stats } from '../stats.js'
import { trace, tracing } from '../trace.js'
import type { Blocktime } from './blocktime.js'
import type { ReturnPath } from './return-path.js'
import type { DESTINATION_STATS } from './shared.js'

export interface Faults {
  /** Handle the faults that wait in the userfaultfd. @throws GuestError for one outside of every RAM block. */
  serve(): void
  /** Ask again for all that has been asked for and has not come: on another connection. */
  askAgain(): void
}

export interface FaultsParts {
  readonly blocks: readonly RamBlock[]
  readonly received: readonly Bitmap[]
  readonly requested: readonly Bitmap[]
  readonly blocktime: Blocktime
  readonly userfaultfd: Pick<UserfaultfdOperations, 'readEvents' | 'wake'>
  /** Where the source is asked for a host page: that may change. */
  readonly requests: { readonly over: Pick<ReturnPath, 'requestPage'> }
  readonly stats: Pick<Stats<(typeof DESTINATION_STATS)[number]>, 'requests'>
}

export function createFaults(parts: FaultsParts): Faults {
  const { blocks, received, requested, blocktime, userfaultfd, requests, stats } = parts
  const events = createEventBatch()

  function ask(block: RamBlock, start: number): void {
    requests.over.requestPage(block, start)
    stats.requests++
  }

  function handle(event: number): void {
    // Only page faults were asked for; anything else the kernel may tell is no reason to stop serving them.
    if (events.kind(event) !== 'pagefault') return
    const address = events.address(event)
    const block = blockAt(blocks, address)
    if (block === undefined)
      throw new GuestError(`page fault at 0x${address.toString(16)}, outside of every RAM block`)
    const within = address - block.address
    const offset = within - (within % block.pageSize)
    const page = offset / TARGET_PAGE_BYTES
    if (tracing()) {
      trace('postcopy_ram_fault_thread_request', address, block.name, offset, events.threadId(event))
    }
    if (received[block.index]!.get(page)) {
      // Placed since it stalled: nothing to ask for, but it may have missed being woken.
      userfaultfd.wake(block.address + offset, block.pageSize)
      return
    }
    blocktime.begin(events.threadId(event), block.firstPage + page, monotonicUs())
    if (requested[block.index]!.get(page)) return
    requested[block.index]!.set(page)
    ask(block, offset)
  }

  return {
    serve() {
      const count = userfaultfd.readEvents(events) // none: the waiter was let go meanwhile
      for (let i = 0; i < count; i++) handle(i)
    },
    askAgain() {
      for (const block of blocks) {
        const asked = requested[block.index]!
        for (let page = asked.nextSet(0); page >= 0; page = asked.nextSet(page + 1)) {
          if (!received[block.index]!.get(page)) ask(block, page * TARGET_PAGE_BYTES)
        }
      }
    },
  }
}
