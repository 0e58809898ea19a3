// Counters in shared memory: one thread writes each counter, any thread reads. A table of names gives the layout.

export type Stats<N extends string> = { [name in N]: number }

/** Bytes of shared memory that `names` need. */
export const statsBytes = (names: readonly string[]): number => names.length * 8

/** An object whose properties are doubles in shared memory. Plain loads and stores: a reader may be a little late. */
export function createStats<N extends string>(names: readonly N[], memory: SharedArrayBuffer): Stats<N> {
  const values = new Float64Array(memory)
  const stats = {} as Stats<N>
  // One by one: V8 makes a hash table, slow to read, of an object that is written with accessors, or gets many at once.
  for (const [i, name] of names.entries()) {
    Object.defineProperty(stats, name, {
      enumerable: true,
      get: () => values[i],
      set: (value: number) => {
        values[i] = value
      },
    })
  }
  return stats
}
