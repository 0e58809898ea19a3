import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { HostUnsupportedError, SystemError } from '../errors.js'
import { type Mapping, mapAnonymous, memset, viewOf } from './mapping.js'
import { createPoll, POLL_EVENTS } from './poll.js'
import { openUserfaultfd, type Userfaultfd } from './userfaultfd.js'
import { PAGEFAULT_FLAGS } from './userfaultfd-abi.js'
import { createEventBatch } from './userfaultfd-events.js'

const PAGE = 4096

/** The worker's part: read one byte at each address in turn, then say how many and their sum. */
interface TouchOrder {
  readonly addresses: readonly number[]
  /** [about to touch, touched, sum of the bytes] */
  readonly shared: SharedArrayBuffer
}

if (!isMainThread) touch(workerData as TouchOrder)

function touch({ addresses, shared }: TouchOrder): void {
  const cells = new Int32Array(shared)
  const views = addresses.map((address) => viewOf(address, 1))
  for (const view of views) {
    Atomics.add(cells, 0, 1)
    Atomics.add(cells, 2, Atomics.load(view, 0))
    Atomics.add(cells, 1, 1)
  }
}

interface Toucher {
  readonly cells: Int32Array
  readonly ended: Promise<unknown>
}

function startToucher(addresses: readonly number[]): Toucher {
  const shared = new SharedArrayBuffer(12)
  const worker = new Worker(new URL(import.meta.url), {
    workerData: { addresses, shared } satisfies TouchOrder,
  })
  const ended = new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject))
  return { cells: new Int32Array(shared), ended }
}

function watched(t: TestContext, pages: number, userModeOnly = false): Mapping & { uffd: Userfaultfd } {
  const uffd = openUserfaultfd({ features: ['THREAD_ID'], ...(userModeOnly ? { userModeOnly } : {}) })
  const mapping = mapAnonymous(pages * PAGE)
  t.after(() => {
    uffd.close()
    mapping.unmap()
  })
  uffd.register(mapping.address, mapping.length, 'missing')
  return { ...mapping, uffd }
}

/** A page-sized source at an address that is not aligned, filled with `byte`. */
function unalignedSource(t: TestContext, byte: number, pages = 1): number {
  const source = mapAnonymous((pages + 1) * PAGE)
  t.after(() => source.unmap())
  memset(source.address + 9, byte, pages * PAGE)
  return source.address + 9
}

if (isMainThread) {
  for (const [how, userModeOnly] of [
    ['', false],
    [', without a right', true],
  ] as const) {
    test(`faults of another thread are served in any order${how}`, { timeout: 60_000 }, async (t) => {
      const { address, uffd } = watched(t, 256, userModeOnly)
      assert.equal(uffd.userModeOnly, userModeOnly)
      const order = Array.from({ length: 100 }, (_, i) => ((i * 77) % 256) * PAGE)
      const toucher = startToucher(order.map((offset) => address + offset + 5))
      const events = createEventBatch()
      const poll = createPoll(1)
      poll.set(0, uffd.fd, POLL_EVENTS.in)
      const source = unalignedSource(t, 3)

      for (const offset of order) {
        assert.equal(poll.wait(10_000), 1)
        assert.equal(uffd.readEvents(events), 1)
        assert.equal(events.kind(0), 'pagefault')
        assert.equal(events.address(0), address + offset)
        assert.equal(events.flags(0) & PAGEFAULT_FLAGS.write, 0)
        assert.notEqual(events.threadId(0), process.pid)
        assert.equal(uffd.copy(events.address(0), source, PAGE), 'placed')
      }
      await toucher.ended
      assert.deepEqual([...toucher.cells], [100, 100, 300])
      assert.equal(uffd.readEvents(events), 0)
    })
  }

  test('waiting events are read many at a time', { timeout: 60_000 }, async (t) => {
    const { address, uffd } = watched(t, 8)
    const pages = [1, 3, 4, 6]
    const touchers = pages.map((page) => startToucher([address + page * PAGE]))
    const waiting = () => touchers.every((toucher) => Atomics.load(toucher.cells, 0) === 1)
    while (!waiting()) await new Promise((resolve) => setTimeout(resolve, 5))
    await new Promise((resolve) => setTimeout(resolve, 100))

    const batch = createEventBatch(3)
    const seen: number[] = []
    for (let left = pages.length; left > 0; ) {
      const count = uffd.readEvents(batch)
      assert.equal(count, Math.min(left, 3))
      for (let i = 0; i < count; i++) seen.push((batch.address(i) - address) / PAGE)
      left -= count
    }
    assert.deepEqual(seen.sort(), pages)
    // One placement wakes all that wait within its run.
    assert.equal(uffd.zeropage(address, 8 * PAGE), 'placed')
    await Promise.all(touchers.map((toucher) => toucher.ended))
  })

  test('a run stops at a page that is there already', (t) => {
    const { address, uffd } = watched(t, 64)
    const source = unalignedSource(t, 7, 64)
    assert.equal(uffd.copy(address + 40 * PAGE, source, PAGE), 'placed')
    assert.equal(uffd.lastBytes, PAGE)

    assert.equal(uffd.copy(address, source, 64 * PAGE), 'again')
    assert.equal(uffd.lastBytes, 40 * PAGE)
    assert.equal(uffd.copy(address + 40 * PAGE, source, 24 * PAGE), 'already')
    assert.equal(uffd.lastBytes, 0)
    assert.equal(uffd.zeropage(address + 40 * PAGE, 24 * PAGE), 'already')
    assert.equal(uffd.zeropage(address + 41 * PAGE, 23 * PAGE), 'placed')
    assert.equal(uffd.lastBytes, 23 * PAGE)

    const view = viewOf(address, 64 * PAGE)
    assert.deepEqual([view[0], view[40 * PAGE], view[41 * PAGE], view[64 * PAGE - 1]], [7, 7, 0, 0])
  })

  test('a placement outside of registered memory is gone, a senseless one is an error', (t) => {
    const { address, uffd } = watched(t, 4)
    const source = unalignedSource(t, 1)
    assert.throws(() => uffd.copy(address + 1, source, PAGE), { name: 'SystemError', errnoName: 'EINVAL' })
    uffd.unregister(address, 4 * PAGE)
    assert.equal(uffd.copy(address, source, PAGE), 'gone')
    assert.equal(uffd.zeropage(address, PAGE), 'gone')
    const overKernel = () => uffd.register(2 ** 47, PAGE, 'missing')
    assert.throws(
      overKernel,
      (error) => error instanceof SystemError && error.message.includes('0x800000000000'),
    )
  })

  test('unregistering lets a waiting thread go on with zeros', { timeout: 60_000 }, async (t) => {
    const { address, uffd } = watched(t, 1)
    const toucher = startToucher([address])
    const poll = createPoll(1)
    poll.set(0, uffd.fd, POLL_EVENTS.in)
    assert.equal(poll.wait(10_000), 1)
    uffd.unregister(address, PAGE)
    await toucher.ended
    assert.deepEqual([...toucher.cells], [1, 1, 0])
  })

  test('registration tells what it allows', (t) => {
    const { address, uffd } = watched(t, 1)
    const ioctls = uffd.register(address, PAGE, 'missing+write-protect')
    for (const needed of ['WAKE', 'COPY', 'ZEROPAGE', 'WRITEPROTECT'] as const)
      assert(ioctls.has(needed), needed)
    assert(uffd.features.has('THREAD_ID'))
    assert.equal(uffd.writeProtect(address, PAGE, true), 'done')
    assert.equal(uffd.writeProtect(address, PAGE, false), 'done')
  })

  test('a feature that the kernel lacks is named', () => {
    // No kernel has it, and the handshake never hears of it.
    const features = ['TELEPATHY'] as unknown as ['MOVE']
    const open = () => openUserfaultfd({ features })
    assert.throws(
      open,
      (error) => error instanceof HostUnsupportedError && error.message.includes('TELEPATHY'),
    )
  })

  test('huge pages are placed whole and refuse zeropage', { timeout: 60_000 }, (t) => {
    const huge = 2 * 1024 * 1024
    if (!reserveHugePages(t, 2)) return t.skip('no right to reserve huge pages, or none are free')
    const mapping = mapAnonymous(2 * huge, { pageSize: huge })
    const uffd = openUserfaultfd({ features: [] })
    t.after(() => {
      uffd.close()
      mapping.unmap()
    })
    const ioctls = uffd.register(mapping.address, mapping.length, 'missing')
    assert(!ioctls.has('ZEROPAGE'))
    const source = unalignedSource(t, 5, huge / PAGE)
    assert.equal(uffd.copy(mapping.address + huge, source, huge), 'placed')
    assert.equal(uffd.copy(mapping.address + huge, source, huge), 'already')
    assert.throws(() => uffd.copy(mapping.address, source, PAGE), { errnoName: 'EINVAL' })
    assert.equal(viewOf(mapping.address + huge, huge)[huge - 1], 5)
  })
}

/** Reserves for the time of the test; false if that is not possible here. */
function reserveHugePages(t: TestContext, count: number): boolean {
  const pool = '/proc/sys/vm/nr_hugepages'
  const pages = () => Number(readFileSync(pool, 'utf8'))
  const before = pages()
  try {
    writeFileSync(pool, String(before + count))
  } catch {
    return false
  }
  // Not what was there before: other tests run beside this one.
  t.after(() => writeFileSync(pool, String(Math.max(0, pages() - count))))
  return pages() >= before + count
}
