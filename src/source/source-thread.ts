// Entry of the source thread for a guest that runs here.

import { workerData } from 'node:worker_threads'
import { createGuestRemote, type GuestConnection } from '../guest/guest-remote.js'
import type { RamBlock } from '../ram/block.js'
import { createLiveOrigin } from './origin.js'
import { runSource, type SourceThreadBase } from './run-source.js'

export interface SourceThreadData extends SourceThreadBase {
  readonly blocks: readonly RamBlock[]
  readonly guest: GuestConnection
}

const data = workerData as SourceThreadData
const { blocks } = data
runSource(data, () => ({ origin: createLiveOrigin(createGuestRemote(data.guest), blocks), blocks }))
