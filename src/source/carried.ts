// How fast the destination takes what is pushed: bytes a second while any are on their way. Pure; source thread.

import type { PushWindow } from './window.js'

export interface MeteredWindow extends PushWindow {
  /** So far; 0 when nothing has been pushed. */
  readonly bytesPerSecond: number
}

export function meter(window: PushWindow): MeteredWindow {
  let flying = 0
  let bytes = 0
  let busyUs = 0
  let sinceUs = 0
  return {
    get windowBytes() {
      return window.windowBytes
    },
    get bytesPerSecond() {
      return busyUs === 0 ? 0 : (bytes / busyUs) * 1e6
    },
    room: window.room,
    sent(value, sent, nowUs) {
      if (flying++ === 0) sinceUs = nowUs
      bytes += sent
      window.sent(value, sent, nowUs)
    },
    acknowledged(value, nowUs) {
      const known = window.acknowledged(value, nowUs)
      if (known) {
        flying--
        busyUs += nowUs - sinceUs
        sinceUs = nowUs
      }
      return known
    },
  }
}
