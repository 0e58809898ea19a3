// A receiver that has rehearsed, as it has when somebody is told to migrate there: not in the moment in which it begins to listen.

import { setTimeout } from 'node:timers/promises'

/** Whoever has listened for so long has, ms. */
const REHEARSED_MS = 1000

export const untilRehearsed = (): Promise<void> => setTimeout(REHEARSED_MS)
