// All targets of the fuzz harness.

import { images, savedStreams, sidecars, workingSets } from './images.js'
import { qmpClient, qmpParser } from './qmp.js'
import { records } from './records.js'
import { returnPath, returnPathParser } from './return-path.js'
import { stream, streamHuge, streamLarge } from './stream.js'
import type { Target } from './target.js'

export const TARGETS: readonly Target[] = [
  stream,
  streamLarge,
  streamHuge,
  records,
  returnPath,
  returnPathParser,
  qmpParser,
  qmpClient,
  images,
  sidecars,
  workingSets,
  savedStreams,
]
