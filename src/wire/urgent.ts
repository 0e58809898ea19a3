// How two ends of our own agree on a second connection, for requested pages. QEMU has no words for it: its operator tells
// both ends (postcopy-preempt). Ours are values of PING and PONG, which a QEMU, or an older farfault, answers like any
// other; so nothing has to be known of the peer. Pure; any thread.
//
//   PING asked     source:      may a second connection be opened?
//   PONG welcome   destination: yes, if the number in the low bits is said there first      (and PONG asked, as ever)
//   PING welcome   source:      the first bytes on that connection; page records follow
//   PONG here      destination: on the first connection; requests come over the second one from now on

import { encodeCommand } from './messages.js'

/** Round trip, µs, from which on a lost packet costs a guest so long that a page, or a request, is worth a second copy. */
export const LONG_ROUND_TRIP_US = 2000

/** High byte of the value; the rest is a number that the source made up, so that nobody else is taken for it. */
const WORDS = { asked: 0xfa, welcome: 0xfb, here: 0xfc } as const
type Word = keyof typeof WORDS

export const URGENT_TOKENS = 2 ** 24

export const urgentValue = (word: Word, token: number): number => WORDS[word] * URGENT_TOKENS + token

/** The number in `value` if it says `word`. */
export function urgentToken(word: Word, value: number): number | undefined {
  return Math.floor(value / URGENT_TOKENS) === WORDS[word] ? value % URGENT_TOKENS : undefined
}

/** What the source says first on the second connection. */
export const urgentHello = (token: number): Uint8Array =>
  encodeCommand({ name: 'PING', value: urgentValue('welcome', token) })
