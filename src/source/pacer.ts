// A bandwidth limit for background data: a bucket that fills at the limit and is emptied by what is sent.
// Requested pages are charged but never wait. Pure; source thread.

/** Idle time is saved up for at most this long. */
const BURST_MS = 50

export interface Pacer {
  /** 0 = no limit. */
  bytesPerSecond: number
  charge(bytes: number): void
  /** Milliseconds until background data may go again; 0 = now. */
  waitMs(nowMs: number): number
}

export function createPacer(bytesPerSecond: number, startMs: number): Pacer {
  let balance = 0
  let lastMs = startMs
  const pacer: Pacer = {
    bytesPerSecond,
    charge(bytes) {
      balance -= bytes
    },
    waitMs(nowMs) {
      const rate = pacer.bytesPerSecond / 1000
      if (rate === 0) {
        balance = 0
        lastMs = nowMs
        return 0
      }
      balance = Math.min(balance + (nowMs - lastMs) * rate, BURST_MS * rate)
      lastMs = nowMs
      return balance >= 0 ? 0 : Math.max(1, Math.ceil(-balance / rate))
    },
  }
  return pacer
}
