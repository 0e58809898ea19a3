// Events read from a userfaultfd, many at a time, into a buffer that is made once. Destination thread.

import { SystemError } from '../errors.js'
import { getU64, type NativeBuffer, nativeBuffer, setU64 } from './memory.js'
import { EVENT_KINDS, type EventKind, UFFD_MSG } from './userfaultfd-abi.js'

/** Events taken with one read(2). */
const EVENTS_MAX = 64

/** Events by index, 0 .. the number that `readEvents` answered. They hold until the next read into the batch. */
export interface EventBatch {
  kind(index: number): EventKind
  /** Address touched, rounded down to its page unless EXACT_ADDRESS is on. Of other events: where their range begins. */
  address(index: number): number
  /** Bits of PAGEFAULT_FLAGS. */
  flags(index: number): number
  /** Kernel thread id of the toucher with the feature THREAD_ID, otherwise 0. */
  threadId(index: number): number
  /** Where read(2) stores the messages. */
  readonly bufferAddress: number
  readonly bufferBytes: number
  /** The number of whole messages in what read(2) returned. @throws SystemError if the last one is cut short. */
  accept(bytes: number): number
}

/** Where each kind keeps its first address: behind the flags in a page fault, at once in the others. */
const FIRST_ADDRESS = { pagefault: UFFD_MSG.word.address, other: UFFD_MSG.word.flags } as const

export function createEventBatch(eventsMax = EVENTS_MAX): EventBatch {
  const buffer = nativeBuffer(eventsMax * UFFD_MSG.size)
  const words = buffer.words
  const wordsEach = UFFD_MSG.size / 4

  function kind(index: number): EventKind {
    const event = buffer.bytes[index * UFFD_MSG.size + UFFD_MSG.at.event]!
    const name = EVENT_KINDS[event as keyof typeof EVENT_KINDS]
    if (name === undefined) throw new SystemError('read userfaultfd', `unknown event ${event}`)
    return name
  }
  return {
    kind,
    address(index) {
      const first = kind(index) === 'pagefault' ? FIRST_ADDRESS.pagefault : FIRST_ADDRESS.other
      return getU64(words, index * wordsEach + first)
    },
    flags: (index) => words[index * wordsEach + UFFD_MSG.word.flags]!,
    threadId: (index) => words[index * wordsEach + UFFD_MSG.word.ptid]!,
    bufferAddress: buffer.address,
    bufferBytes: buffer.length,
    accept(bytes) {
      if (bytes % UFFD_MSG.size !== 0) {
        throw new SystemError('read userfaultfd', 'short read', `${bytes} bytes are not whole messages`)
      }
      return bytes / UFFD_MSG.size
    },
  }
}

/** A page fault as the kernel would tell of it, for whoever plays the kernel. */
export interface PageFault extends NativeBuffer {
  setAddress(address: number): void
}

export function createPageFault(threadId: number): PageFault {
  const message = nativeBuffer(UFFD_MSG.size)
  const event = Object.entries(EVENT_KINDS).find(([, kind]) => kind === 'pagefault')!
  message.bytes[UFFD_MSG.at.event] = Number(event[0])
  message.words[UFFD_MSG.word.ptid] = threadId
  return { ...message, setAddress: (address) => setU64(message.words, UFFD_MSG.word.address, address) }
}
