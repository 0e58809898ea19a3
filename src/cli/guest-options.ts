// The options that say which guest to boot, and what becomes of them. Pure.

import type { GuestSpec } from '../index.js'
import { optional, type Values, withDefault } from './options.js'
import { count, oneOf, range, share, size } from './values.js'

const PATTERNS = ['sequential', 'random', 'stride', 'hot-cold'] as const

export const GUEST_OPTIONS = {
  guest: withDefault('v86|pattern', oneOf(['v86', 'pattern']), 'v86', 'an emulated PC, or a test pattern'),
  memory: withDefault('SIZE', size, '128M', 'RAM of the guest'),
  range: optional('START-END', range, 'v86: the part of RAM it counts up, pass after pass (1M-100M)'),
  pattern: withDefault(
    'NAME',
    oneOf(PATTERNS),
    'random',
    `pattern: order of the pages; ${PATTERNS.join(', ')}`,
  ),
  rate: optional('N', count(1), 'pattern: pages visited a second (as fast as it can)'),
  touch: optional('N', count(1), 'pattern: how many pages are ever used, spread over RAM (all)'),
  writes: withDefault('SHARE', share, '0.5', 'pattern: visits that also write'),
} as const

export function guestSpec(values: Values<typeof GUEST_OPTIONS>): GuestSpec {
  if (values.guest === 'v86') {
    return { module: 'v86', options: { memoryBytes: values.memory, ...values.range } }
  }
  const options = {
    blocks: [{ name: 'pattern.ram', length: values.memory }],
    pattern: values.pattern,
    seed: 1,
    writeRatio: values.writes,
    ...(values.rate === undefined ? {} : { pagesPerSecond: values.rate }),
    ...(values.touch === undefined ? {} : { touchedPages: values.touch }),
  }
  return { module: 'pattern', options }
}

/** What must be typed for another command to boot the same guest. */
export function guestArguments(values: Values<typeof GUEST_OPTIONS>): string[] {
  const { guest, memory, range, pattern, rate, touch, writes } = values
  return [
    `--guest=${guest}`,
    `--memory=${memory}`,
    `--pattern=${pattern}`,
    `--writes=${writes}`,
    ...(range === undefined ? [] : [`--range=${range.start}-${range.end}`]),
    ...(rate === undefined ? [] : [`--rate=${rate}`]),
    ...(touch === undefined ? [] : [`--touch=${touch}`]),
  ]
}
