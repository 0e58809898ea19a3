import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Benchmark, quantile, runBenchmark } from './benchmark.js'

test('quantiles: ends, middle, and between two values', () => {
  assert.equal(quantile([1, 2, 3], 0), 1)
  assert.equal(quantile([1, 2, 3], 1), 3)
  assert.equal(quantile([1, 2, 3, 4], 0.5), 2.5)
})

test('variants take turns, the first turn does not count; ratios compare medians, and round with round', async () => {
  const order: string[] = []
  const values: Record<string, number[]> = { a: [99, 2, 4, 60], b: [99, 1, 4, 10] }
  const variant = (name: string) => ({
    name,
    run: async () => {
      order.push(name)
      return { t: values[name]!.shift()! }
    },
  })
  const benchmark: Benchmark = {
    name: 'x',
    about: '',
    rounds: 3,
    metrics: [{ name: 't', unit: 'ms' }],
    variants: [variant('a'), variant('b')],
    ratios: [['a', 'b']],
  }
  const { measurements, ratios } = await runBenchmark(benchmark, () => {})
  assert.equal(order.join(''), 'abababab')
  assert.deepEqual(
    measurements.map(({ variant, median, min, max }) => [variant, median, min, max]),
    [
      ['a', 4, 2, 60],
      ['b', 4, 1, 10],
    ],
  )
  assert.equal(ratios[0]!.ofMedians, 1)
  assert.deepEqual(ratios[0]!.values, [2, 1, 6])
  assert.equal(ratios[0]!.median, 2)
})
