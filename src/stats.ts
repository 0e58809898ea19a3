// Counters in shared memory: one thread writes each counter, any thread reads. A table of names gives the layout.

export type Stats<N extends string> = { [name in N]: number }

/** Bytes of shared memory that `names` need. */
export const statsBytes = (names: readonly string[]): number => names.length * 8

const VALUES = Symbol('values')
type WithValues = { readonly [VALUES]: Float64Array }

/** Of each table: objects that share their accessors have one shape, and code that was compiled for one of them fits all. */
const accessors = new Map<readonly string[], readonly PropertyDescriptor[]>()

/** An object whose properties are doubles in shared memory. Plain loads and stores: a reader may be a little late. */
export function createStats<N extends string>(names: readonly N[], memory: SharedArrayBuffer): Stats<N> {
  const shared = accessors.get(names) ?? names.map((_, i) => accessor(i))
  accessors.set(names, shared)
  const stats = Object.defineProperty({}, VALUES, { value: new Float64Array(memory) })
  // One by one: V8 makes a hash table, slow to read, of an object that is written with accessors, or gets many at once.
  for (const [i, name] of names.entries()) Object.defineProperty(stats, name, shared[i]!)
  return stats as Stats<N>
}

const accessor = (i: number): PropertyDescriptor & ThisType<WithValues> => ({
  enumerable: true,
  get() {
    return this[VALUES][i]
  },
  set(value: number) {
    this[VALUES][i] = value
  },
})
