import assert from 'node:assert/strict'
import { test } from 'node:test'
import { narrow } from './benchmark.js'
import { parseOptions } from './options.js'

test('names, lists, numbers; what is none is refused', () => {
  const options = parseOptions(['serve', '--ram', '256,1024', '--qemu', '7.2', '--rounds', '2'])
  assert.deepEqual(options.names, ['serve'])
  assert.deepEqual(options.ramMiB, [256, 1024])
  assert.deepEqual(options.qemus, ['7.2'])
  assert.equal(options.rounds, 2)
  assert.equal(options.help, false)
  assert.equal(parseOptions(['-h']).help, true)
  assert.throws(() => parseOptions(['--rounds', 'many']), TypeError)
  assert.throws(() => parseOptions(['--nonsense']), TypeError)
})

test('with some variants only, ratios of others are gone', () => {
  const variant = (name: string) => ({ name, run: async () => ({}) })
  const variants = ['a', 'b', 'c'].map(variant)
  const all = { name: 'x', about: '', rounds: 7, metrics: [], variants }
  const benchmark = { ...all, ratios: [['a', 'b'] as const, ['b', 'c'] as const] }
  const narrowed = narrow(benchmark, { rounds: undefined, only: ['a', 'b'] })
  assert.deepEqual(narrowed.ratios, [['a', 'b']])
  assert.equal(narrowed.rounds, 7)
})
