// What one check of the host probe found. Shared by the probe's files; any thread.

import type { Ioctl } from './userfaultfd-abi.js'

export interface Finding {
  /** `warning`: it works, with the limit that `detail` tells. */
  readonly ok: boolean | 'warning'
  readonly detail: string
  /** What to change. */
  readonly remedy?: string
}

export const NEWER_KERNEL = 'use a newer kernel, built with CONFIG_USERFAULTFD=y'

/** The needed operations that are not there, for a message; empty if none is missing. */
export function missingFrom(present: ReadonlySet<Ioctl>, needed: readonly Ioctl[]): string {
  return needed.filter((ioctl) => !present.has(ioctl)).join(', ')
}
