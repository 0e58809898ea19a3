// What the pattern guest writes: a page's bytes are a pure function of seed, page and version. Guest thread.
//
// Word i of a page is base + i · INCREMENT, where the base is a hash of (seed, page, version). So any word that is of
// another page, of an older version, or torn off in the middle is wrong. Version 0 is the page never written: zeros.

import { PAGE_WORDS } from './ram-blocks.js'

const INCREMENT = 0x9e3779b1 | 0

export function pageBase(seed: number, page: number, version: number): number {
  if (version === 0) return 0
  let hash = Math.imul(seed ^ 0x2545f491, 0x85ebca6b) ^ Math.imul(page + 1, 0xc2b2ae35)
  hash = Math.imul(hash ^ (hash >>> 15) ^ version, 0x27d4eb2f)
  return (hash ^ (hash >>> 13)) | 0
}

export function writePage(view: Int32Array, at: number, seed: number, page: number, version: number): void {
  let word = pageBase(seed, page, version)
  for (let i = at; i < at + PAGE_WORDS; i++) {
    view[i] = word
    word = (word + INCREMENT) | 0
  }
}

/** Looks at the first word, the last, and two that differ from step to step. */
export function samplePage(
  view: Int32Array,
  at: number,
  seed: number,
  page: number,
  version: number,
  step: number,
): boolean {
  const base = pageBase(seed, page, version)
  const increment = version === 0 ? 0 : INCREMENT
  const last = PAGE_WORDS - 1
  const some = Math.imul(step, 0x85ebca6b) >>> 22
  return (
    view[at] === base &&
    view[at + last] === ((base + Math.imul(last, increment)) | 0) &&
    view[at + some] === ((base + Math.imul(some, increment)) | 0) &&
    view[at + (last - some)] === ((base + Math.imul(last - some, increment)) | 0)
  )
}

/** Index in the page of the first word that is wrong; -1 if all are right. */
export function wrongWord(view: Int32Array, at: number, seed: number, page: number, version: number): number {
  const increment = version === 0 ? 0 : INCREMENT
  let word = pageBase(seed, page, version)
  for (let i = 0; i < PAGE_WORDS; i++) {
    if (view[at + i] !== word) return i
    word = (word + increment) | 0
  }
  return -1
}
