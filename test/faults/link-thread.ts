// A link with delay and loss, for a network namespace of its own: a TUN device whose packets come back after a while, or
// not at all. A packet to the far address comes back as one from the far address to ours, so both ends of a connection
// are in one process, and the kernel's own TCP does everything. A worker of its own: it blocks in poll.

import { workerData } from 'node:worker_threads'
import { check, libc } from '../../src/os/libc.js'
import { nativeBuffer } from '../../src/os/memory.js'
import { createPoll, POLL_EVENTS } from '../../src/os/poll.js'
import { createRandom } from '../engine/random.js'

export interface LinkThreadData {
  readonly device: string
  readonly delayMs: number
  /** Of a hundred packets. */
  readonly lossPercent: number
  readonly seed: number
  /** [0]: 1 to stop, 2 to lose everything from now on; [1]: ready; [2]: packets; [3]: of these, lost. */
  readonly cells: Int32Array
}

const STOP = 1
const DEAD = 2
const O_RDWR = 2
const O_NONBLOCK = 2048
/** Linux's linux/if_tun.h. */
const TUNSETIFF = 0x4004_54ca
const IFF_TUN = 0x0001
const IFF_NO_PI = 0x1000
const IFREQ_BYTES = 40
const IFREQ_FLAGS_AT = 16
const PACKET_BYTES_MAX = 2048
const QUEUE_PACKETS_MAX = 20_000
/** IPv4: source and destination are 4 bytes each; swapping them leaves every checksum as it is. */
const SOURCE_AT = 12
const DESTINATION_AT = 16

const { device, delayMs, lossPercent, seed, cells } = workerData as LinkThreadData
const random = createRandom(seed)

function openTun(): number {
  const fd = check('open', libc().open('/dev/net/tun', O_RDWR | O_NONBLOCK, 0), '/dev/net/tun')
  const request = nativeBuffer(IFREQ_BYTES)
  request.bytes.set(Buffer.from(device))
  request.bytes[IFREQ_FLAGS_AT] = (IFF_TUN | IFF_NO_PI) & 0xff
  request.bytes[IFREQ_FLAGS_AT + 1] = (IFF_TUN | IFF_NO_PI) >> 8
  check('ioctl', libc().ioctl(fd, TUNSETIFF, request.address), 'TUNSETIFF')
  return fd
}

const fd = openTun()
const packet = nativeBuffer(PACKET_BYTES_MAX)
const queue: { bytes: Uint8Array; dueMs: number }[] = []
let head = 0

function take(): void {
  for (;;) {
    const count = libc().read(fd, packet.address, PACKET_BYTES_MAX)
    if (count <= 0) return
    cells[2]!++
    const lost = Atomics.load(cells, 0) === DEAD || random.integer(100_000) < lossPercent * 1000
    if (lost || packet.bytes[0]! >> 4 !== 4 || queue.length - head >= QUEUE_PACKETS_MAX) {
      cells[3]!++
      continue
    }
    const bytes = packet.bytes.slice(0, count)
    bytes.copyWithin(SOURCE_AT, DESTINATION_AT, DESTINATION_AT + 4)
    bytes.set(packet.bytes.subarray(SOURCE_AT, SOURCE_AT + 4), DESTINATION_AT)
    queue.push({ bytes, dueMs: performance.now() + delayMs })
  }
}

function give(): void {
  for (; head < queue.length && queue[head]!.dueMs <= performance.now(); head++) {
    const { bytes } = queue[head]!
    packet.bytes.set(bytes)
    libc().write(fd, packet.address, bytes.length)
  }
  if (head > 1000) head -= queue.splice(0, head).length
}

const poll = createPoll(1)
poll.set(0, fd, POLL_EVENTS.in)
Atomics.store(cells, 1, 1)
Atomics.notify(cells, 1)
while (Atomics.load(cells, 0) !== STOP) {
  const waitMs = head < queue.length ? Math.max(0, Math.floor(queue[head]!.dueMs - performance.now())) : 50
  poll.wait(waitMs)
  take()
  give()
}
libc().close(fd)
