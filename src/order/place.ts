// Where a page is, and who finds the next one. Pure; source thread.

/** Filled anew at each call, so that finding a page leaves no garbage. */
export interface Place {
  blockIndex: number
  /** Target page of the block. */
  page: number
}

/** Finds pages that are still to send; taking them is its caller's. */
export interface Finder {
  /** Where the next page is, into `place`; the same one until it has been taken. False when there is none. */
  seek(place: Place): boolean
}

export interface Scan extends Finder {
  /** A request led to `page`; `end`: the first page behind what went out for it. */
  asked(blockIndex: number, page: number, end: number): void
  /** Begin at the first page of the first block again. */
  rewind(): void
  /** Times the scan came past the end of the last block. */
  wrapped(): number
}
