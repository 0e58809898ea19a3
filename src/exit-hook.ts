// What must happen before the process may end. Main thread.
//
// Node joins its worker threads at exit. A worker that is stalled on a page that is not there, or that blocks in a
// system call, can only be joined once it has been let go; otherwise `process.exit()` hangs for ever.

const hooks = new Set<() => void>()
let installed = false

/** Runs `hook` when the process exits; returns what takes it off again. Hooks must not throw and must not wait. */
export function beforeExit(hook: () => void): () => void {
  if (!installed) {
    installed = true
    process.on('exit', () => {
      for (const each of hooks) each()
    })
  }
  hooks.add(hook)
  return () => hooks.delete(hook)
}
