// What of this host the engine's tests need, count, and put back.

import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { HostUnsupportedError } from '../../src/errors.js'
import { assertHostCanReceive } from '../../src/os/probe.js'

export const HUGE_PAGE_BYTES = 2 * 1024 * 1024
const POOL = '/proc/sys/vm/nr_hugepages'

/** For the `skip` option of `node:test`: false, or why this host cannot receive by postcopy. */
export function postcopySkipReason(): string | false {
  try {
    assertHostCanReceive()
    return false
  } catch (error) {
    if (error instanceof HostUnsupportedError) return error.message
    throw error
  }
}

/**
 * Adds `pages` huge pages to the pool, where this process may; `release` takes them out again.
 * A string is the reason why there are none.
 */
export function reserveHugePages(pages: number): { release(): void } | string {
  const before = poolPages()
  try {
    writeFileSync(POOL, String(before + pages))
  } catch {
    return `no right to reserve huge pages: echo ${pages} > ${POOL}`
  }
  // Not what was there before: tests that run beside this one have reserved some meanwhile, or given some back.
  const release = (): void => writeFileSync(POOL, String(Math.max(0, poolPages() - pages)))
  if (poolPages() >= before + pages) return { release }
  release()
  return `this host has no room for ${pages} huge pages of ${HUGE_PAGE_BYTES} bytes`
}

const poolPages = (): number => Number(readFileSync(POOL, 'utf8'))

/** Open descriptors of this process, and what they are: sockets, userfaultfds, eventfds, files. */
export function openDescriptors(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [`${fd} ${readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, 'N')}`]
    } catch {
      return [] // the descriptor of the folder itself
    }
  })
}

/** Waits until no more descriptors are open than at `before`; answers those that are over. */
export async function descriptorsSince(before: readonly string[]): Promise<string[]> {
  const known = new Set(before)
  let left: string[] = []
  // The end of a worker closes its event loop's descriptors a moment after the `exit` event.
  for (let i = 0; i < 50; i++) {
    left = openDescriptors().filter((each) => !known.has(each))
    if (openDescriptors().length <= before.length) return []
    await sleep(20)
  }
  return left
}

/** Ranges of this process that a userfaultfd watches for missing pages or write protection. */
export function watchedMappings(): string[] {
  const mappings = readFileSync('/proc/self/smaps', 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
  return mappings.filter((m) => /^VmFlags:.* u[mwi]\b/m.test(m)).map((m) => m.split('\n', 1)[0]!)
}
