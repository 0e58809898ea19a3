// Every target of the fuzz harness for a share of a minute. By hand it runs longer: see main.ts.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { runTarget } from './run.js'
import { TARGETS } from './targets.js'

const SECONDS_ALL = 60
const shares = TARGETS.reduce((sum, { share }) => sum + share, 0)
/** New cases each day, the same ones all day long: a failure prints its seed. */
const FIRST_SEED = Number(process.env.FARFAULT_SEED ?? Math.floor(Date.now() / 86_400_000) * 100_000)
/** The cases must not all die at the first record. */
const DIFFERENT_ENDS_MIN = 5

for (const target of TARGETS) {
  test(`hostile bytes: ${target.name}`, { skip: target.skip, timeout: 300_000 }, async (t) => {
    const seconds = (SECONDS_ALL * target.share) / shares
    const { cases, casesPerSecond, endings, rssMiB } = await runTarget(target, {
      firstSeed: FIRST_SEED % 2 ** 31,
      seconds,
    })
    const sound = endings.get('sound') ?? 0
    t.diagnostic(
      `${cases} cases from seed ${FIRST_SEED}, ${casesPerSecond}/s, ${sound} sound all the same, ` +
        `${endings.size} different ends, RSS ${rssMiB.start} to ${rssMiB.end} MiB`,
    )
    if (cases < 500) return
    assert(endings.size >= DIFFERENT_ENDS_MIN, `only ${endings.size} different ends`)
    assert(sound > 0, 'nothing was still sound: nothing is known about success')
  })
}
