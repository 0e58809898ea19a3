// What can be told to a command while it runs: ctrl-C, keys, signals, and orders of the demo's coordinator. Main thread.
//
// A command says for each phase what ctrl-C is to do; before the first such phase it ends the process at once.

import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { EXIT } from './exit-codes.js'
import type { SideReport } from './reports.js'
import type { DestinationView, SourceView } from './view.js'

/** Set for the two processes that `farfault demo` starts. */
export const COORDINATED = 'FARFAULT_COORDINATED'
/** Without a coordinator nobody wants the guest: how long an orderly end may take, ms. */
const ORPHAN_MS = 1500
const SAME_SIGNAL_MS = 250

/** From a side to the coordinator. */
export type SideMessage =
  | { readonly type: 'listening'; readonly uri: string }
  | { readonly type: 'source'; readonly view: SourceView }
  | { readonly type: 'destination'; readonly view: DestinationView }
  | { readonly type: 'report'; readonly report: SideReport }

/** From the coordinator to a side. */
export type SideOrder = { readonly order: 'interrupt' } | { readonly order: 'map'; readonly cells: number }

export interface Control {
  /** This process is one side of a demo: it reports to a coordinator, and keeps no guest for a user. */
  readonly coordinated: boolean
  /** Cells of the page map that the coordinator shows. */
  readonly mapCells: number
  /** What ctrl-C does from now on. */
  onInterrupt(handler: () => void): void
  /** `p` and enter, or SIGUSR1. `entered` is called for every line that is typed. */
  onSwitch(handler: () => void, entered: () => void): void
  /** Resolves when it has been sent. Nothing without a coordinator. */
  tell(message: SideMessage): Promise<void>
}

export function createControl(): Control {
  const coordinated = process.send !== undefined && process.env[COORDINATED] === '1'
  let mapCells = 1024
  let interrupt = (): void => process.exit(EXIT.interrupted)

  if (coordinated) {
    // ctrl-C reaches every process of the terminal; here the coordinator decides what it means.
    process.on('SIGINT', () => {})
    process.on('message', (message: SideOrder) => {
      if (message.order === 'map') mapCells = message.cells
      else interrupt()
    })
    process.on('disconnect', () => {
      setTimeout(() => process.kill(process.pid, 'SIGKILL'), ORPHAN_MS)
      interrupt()
    })
  } else {
    onSignal(() => interrupt())
  }

  return {
    coordinated,
    get mapCells() {
      return mapCells
    },
    onInterrupt(handler) {
      interrupt = handler
    },
    onSwitch(handler, entered) {
      process.on('SIGUSR1', handler)
      if (coordinated || !inForeground()) return
      const lines = createInterface({ input: process.stdin })
      lines.on('line', (line) => {
        entered()
        if (line.trim() === 'p') handler()
      })
    },
    tell(message) {
      if (!coordinated || !process.connected) return Promise.resolve()
      return new Promise((resolve) => process.send!(message, undefined, undefined, () => resolve()))
    },
  }
}

/**
 * ctrl-C, or another wish that this process ends. A terminal signals a whole group of processes, and a parent like npm
 * passes the signal on as well: what comes twice so soon was meant once.
 */
export function onSignal(handler: () => void): void {
  let lastMs = Number.NEGATIVE_INFINITY
  const once = (): void => {
    const nowMs = performance.now()
    if (nowMs - lastMs < SAME_SIGNAL_MS) return
    lastMs = nowMs
    handler()
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, once)
}

/** A background job that reads its terminal is stopped by the kernel, and its guest with it. */
function inForeground(): boolean {
  if (!process.stdin.isTTY) return false
  // proc_pid_stat(5): after the command in parentheses: state, ppid, pgrp, session, tty_nr, tpgid.
  const stat = readFileSync('/proc/self/stat', 'utf8')
  const [, , group, , , foregroundGroup] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return group === foregroundGroup
}
