// Where a command's words go: to a person, to a program (`--json`), or to the coordinator of a demo. Main thread.

import type { Control } from './control.js'
import { createDisplay, type Display } from './display.js'
import type { SideReport } from './reports.js'
import type { DestinationView, SourceView } from './view.js'

const FRAME_MS = 66

export interface Output {
  /** Cells that a page map should have. */
  readonly mapCells: number
  say(line: string): void
  entered(): void
  /** Shows the view about 15 times a second, until the function that is returned is called. */
  watch(view: () => SourceView | DestinationView): () => void
  /** The end: the report for a program or a coordinator, or else the summary. */
  finish(report: SideReport, summary: () => readonly string[]): Promise<void>
}

export function createOutput(title: string, json: boolean, control: Control): Output {
  // With --json standard output is the report's alone.
  const people = json || control.coordinated ? process.stderr : process.stdout
  const display = createDisplay(people, { quiet: json || control.coordinated })
  const show = (view: SourceView | DestinationView): void => {
    if (control.coordinated) void control.tell(messageOf(view))
    else display.show(viewOf(title, view))
  }
  return {
    get mapCells() {
      return control.coordinated ? control.mapCells : display.mapCells
    },
    say: display.say,
    entered: display.entered,
    watch(view) {
      const frame = () => show(view())
      frame()
      const timer = setInterval(frame, FRAME_MS)
      return () => {
        clearInterval(timer)
        frame()
      }
    },
    async finish(report, summary) {
      display.end()
      if (control.coordinated) return control.tell({ type: 'report', report })
      if (json) process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`)
      else for (const line of summary()) display.say(line)
    },
  }
}

const isSource = (view: SourceView | DestinationView): view is SourceView => 'passes' in view

function messageOf(view: SourceView | DestinationView) {
  return isSource(view) ? ({ type: 'source', view } as const) : ({ type: 'destination', view } as const)
}

function viewOf(title: string, view: SourceView | DestinationView): Parameters<Display['show']>[0] {
  return isSource(view) ? { title, source: view } : { title, destination: view }
}
