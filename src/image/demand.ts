// What is known of the pages that a parked VM asks for, and what a run of it adds. Main thread. Nothing here may hurt the
// VM: what cannot be read is ignored, what cannot be written is said.

import { messageOf, UsageError } from '../errors.js'
import { LIMITS } from '../limits.js'
import { chooseOrder, ORDERS, type OrderChoice, type OrderName } from '../order/orders.js'
import type { DemandRecord, RecordLimits } from '../order/recorder.js'
import type { Image } from './image.js'
import { workingSetPath } from './sidecar.js'
import {
  addRun,
  describeRun,
  hitRate,
  type ImageIdentity,
  identify,
  isOf,
  type Run,
  readWorkingSet,
  type WorkingSetFile,
  workingSetBeside,
} from './working-set-file.js'

export interface DemandOptions {
  /** In which order pages go: a name of `ORDERS`. Default `adaptive`. */
  readonly order?: OrderChoice
  /**
   * Add to the working set beside the image which pages the VM asks for. By default that is done when there is none yet, or
   * the run that recorded it ended before the VM had settled, and the order does not bring pages that nobody asked for around
   * those that somebody did; and when pages that were to go first were not all that the VM asked for. With false nothing is written.
   */
  readonly record?: boolean
  /** Of an earlier image of this VM, or of one that is like it: that image's path, or the file's. For an image that has none yet. */
  readonly workingSet?: string
  /** A record ends after this time, ms, if the VM has not settled before. Default 10000. */
  readonly recordMaxMs?: number
  /** False: pages are sent only when they are asked for. */
  readonly push?: boolean
}

export interface WorkingSetSize {
  readonly file: string
  readonly pages: number
  readonly records: number
}

/** What a run asked for. Grows while it goes on: `run` and `written` are null until the VM has settled. */
export interface DemandReport {
  readonly order: OrderName | 'on-demand'
  /** The working set that the run began with. `earlier`: its runs were of an earlier image of the VM, or of another one. */
  readonly workingSet: (WorkingSetSize & { readonly earlier: boolean }) | null
  readonly run: (Run & { readonly asked: number; readonly hitRate: number | null }) | null
  /** What is in the file now. */
  readonly written: WorkingSetSize | null
  /** Why the working set that is there was not used; null when it was, or there is none. */
  readonly ignored: string | null
  /** Why nothing could be written. Neither hurts the VM. */
  readonly notWritten: string | null
}

export interface Demand {
  readonly order: OrderName
  readonly recorded: Uint32Array | undefined
  readonly record: RecordLimits | undefined
  /** What is noted is for later runs, which live by it: it is to be complete. */
  readonly keeps: boolean
  /** The VM has settled. */
  take(record: DemandRecord): void
  report(): DemandReport
}

/** Each run differs a little from the one before: of fewer pages than this that were missed it is not worth learning. */
export const LEARNT_PAGES_MIN = 4

const sizeOf = (file: string, { pages, records }: WorkingSetFile) => ({ file, pages: pages.length, records })

/** @throws SystemError when the image cannot be read, UsageError when the working set that is to be used is not there */
export function createDemand(image: Image, options: DemandOptions): Demand {
  const {
    order: choice = 'adaptive',
    record: wanted,
    recordMaxMs = LIMITS.recordMaxMs,
    push = true,
  } = options
  const file = workingSetPath(image.path)
  const identity = identify(image)
  const { known, from, ignored } = lookUp(identity, options.workingSet)
  const order = chooseOrder(choice, stateOf(known, wanted !== false))
  // Neighbours that come along are never asked for: a record of them would lack most of what the VM needs.
  const complete = !push || !ORDERS[order].around
  const keep = wanted ?? (known?.recorded.settled !== true && complete)
  const learns = wanted === undefined && push && known !== undefined && ORDERS[order].recorded
  const how = push ? order : 'on-demand'
  let run: DemandReport['run'] = null
  let written: DemandReport['written'] = null
  let notWritten: string | null = null

  return {
    order,
    recorded: known?.pages,
    record: wanted === false ? undefined : { settleMs: LIMITS.recordSettleMs, maxMs: recordMaxMs },
    keeps: keep,
    take(record) {
      const described = describeRun(record, how)
      const seen = {
        record,
        order: how,
        known,
        keep: keep || (learns && described.missed >= LEARNT_PAGES_MIN),
      } as const
      run = { ...described, asked: record.pages.length, hitRate: hitRate(described) ?? null }
      try {
        const set = addRun(identity, seen)
        written = set === undefined ? null : sizeOf(file, set)
      } catch (error) {
        notWritten = messageOf(error)
      }
    },
    report: () => ({
      order: how,
      workingSet: known === undefined ? null : { ...sizeOf(from, known), earlier: !isOf(known, identity) },
      run,
      written,
      ignored,
      notWritten,
    }),
  }
}

function stateOf(known: WorkingSetFile | undefined, recording: boolean): Parameters<typeof chooseOrder>[1] {
  if (known === undefined) return recording ? 'recording' : 'nothing'
  return known.recorded.settled || !recording ? 'record' : 'unsettled'
}

interface Known {
  readonly known: WorkingSetFile | undefined
  /** Where it was. */
  readonly from: string
  readonly ignored: string | null
}

/** The image's own, or else the one at `other`. */
function lookUp(identity: ImageIdentity, other: string | undefined): Known {
  const own = readIfSound(identity, workingSetPath(identity.path))
  if (own.known !== undefined || other === undefined) return own
  const found = readIfSound(identity, workingSetBeside(other))
  if (found.known === undefined && found.ignored === null) throw new UsageError(`there is no ${found.from}`)
  return found
}

function readIfSound(identity: ImageIdentity, from: string): Known {
  try {
    return { known: readWorkingSet(identity, from), from, ignored: null }
  } catch (error) {
    return { known: undefined, from, ignored: messageOf(error) }
  }
}
