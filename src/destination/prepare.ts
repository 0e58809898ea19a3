// Makes guest RAM ready to be received, and ordinary again afterwards. Destination thread.
//
// The order is QEMU's: at ADVISE the host is checked and RAM is emptied; before the first discard transparent huge pages
// are switched off; RAM is watched by userfaultfd before the guest can touch it; at the end all of that is undone.
// Here RAM is registered as soon as it is empty, not first at LISTEN: filling absent pages through userfaultfd is
// faster than writing to them, and LISTEN, which lies in the downtime, has nothing left to do.

import { ProtocolError } from '../errors.js'
import { discard, hugePages, lockedMemoryFlags, mlockall, munlockall, noHugePages } from '../os/mapping.js'
import type { UserfaultfdOperations } from '../os/userfaultfd.js'
import type { RamBlock } from '../ram/block.js'
import { trace } from '../trace.js'
import type { BlockRange } from '../wire/messages.js'

/** Drops all RAM: what the guest's creation left there must not be taken for what the source will send. */
export function emptyRam(blocks: readonly RamBlock[]): void {
  for (const block of blocks) {
    trace('postcopy_init_range', block.name, block.address, 0, block.length)
    discard(block.address, block.length)
  }
}

/** The kernel must not fill in neighbours of a page (huge pages do): they would be present without having been received. */
export function switchHugePagesOff(blocks: readonly RamBlock[]): void {
  for (const block of blocks) {
    if (block.ratio > 1) continue // hugetlbfs: its pages are what they are
    trace('postcopy_nhp_range', block.name, block.address, 0, block.length)
    noHugePages(block.address, block.length)
  }
}

/** From now on whoever touches an absent page waits until it is placed. */
export function enableNotify(blocks: readonly RamBlock[], userfaultfd: UserfaultfdOperations): void {
  for (const block of blocks) userfaultfd.register(block.address, block.length, 'missing')
  trace('postcopy_ram_enable_notify')
}

/** Everything received: RAM is ordinary memory again. */
export function cleanUpRam(blocks: readonly RamBlock[], userfaultfd: UserfaultfdOperations): void {
  for (const block of blocks) {
    trace('postcopy_cleanup_range', block.name, block.address, 0, block.length)
    if (block.ratio === 1) hugePages(block.address, block.length)
    userfaultfd.unregister(block.address, block.length)
  }
}

/** One range of a DISCARD command. @throws ProtocolError when it is not whole host pages inside of the block. */
export function discardRange(block: RamBlock, range: BlockRange, streamOffset: number): void {
  const { start, length } = range
  const bad = (what: string): never => {
    throw new ProtocolError(what, {
      offset: streamOffset,
      record: 'POSTCOPY_RAM_DISCARD',
      got: `block "${block.name}", start ${start}, length ${length}`,
    })
  }
  if (length === 0 || start + length > block.length) bad('discard outside of the RAM block')
  if (start % block.pageSize !== 0 || length % block.pageSize !== 0) bad('discard of part of a host page')
  trace('ram_discard_range', block.name, start, length)
  discard(block.address + start, length)
}

/** Locked memory cannot be absent. Returns what locks it again, if it was locked. */
export function unlockMemory(): () => void {
  const flags = lockedMemoryFlags()
  if (flags === 0) return () => {}
  munlockall()
  return () => mlockall(flags)
}
