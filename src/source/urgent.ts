// A second connection for requested pages, where the destination is one of ours that takes it: a lost packet of the bulk
// stream, or of its answers, then holds up no page that a guest waits for. Source thread, before precopy begins.

import { ChannelError } from '../errors.js'
import { connectTo, releaseChannel, sendAll } from '../os/channel.js'
import { encodeCommand } from '../wire/messages.js'
import { RAM_END } from '../wire/ram-stream.js'
import { urgentHello, urgentValue } from '../wire/urgent.js'
import type { Outgoing } from './outgoing.js'

/** The guest still runs meanwhile; and without it, it works as well. */
const TIMEOUT_MS = 3000

/** A destination that knows what this means answers before it answers the next PING. */
export function askForUrgent(o: Outgoing): void {
  o.sender.control(encodeCommand({ name: 'PING', value: urgentValue('asked', o.urgentToken) }))
}

/** Its descriptor; undefined when the destination does not take one: then requested pages go with the others. */
export function openUrgent(o: Outgoing, uri: string, wakeFd: number): number | undefined {
  if (!o.pongs.has(urgentValue('welcome', o.urgentToken))) return undefined
  let fd = -1
  try {
    fd = connectTo(uri, { wakeFd, timeoutMs: TIMEOUT_MS })
    sendAll(fd, urgentHello(o.urgentToken))
    const here = urgentValue('here', o.urgentToken)
    o.link.pumpUntil(() => o.pongs.has(here), TIMEOUT_MS, 'taking a connection for requested pages')
  } catch (error) {
    // If it is the first connection that broke, that is seen there.
    if (!(error instanceof ChannelError) || o.link.shut() !== undefined) {
      releaseChannel(fd)
      throw error
    }
    if (fd >= 0) giveBack(fd)
    return undefined
  }
  o.useUrgent(fd)
  return fd
}

/** The destination may take it in yet: it is told that nothing comes. */
function giveBack(fd: number): void {
  try {
    sendAll(fd, RAM_END)
  } catch (error) {
    if (!(error instanceof ChannelError)) throw error
  }
  releaseChannel(fd)
}
