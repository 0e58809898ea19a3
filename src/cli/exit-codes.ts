// Exit codes of the command line, as a table: `--help` prints it. Pure.

export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const
export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

export const EXIT_MEANING: Readonly<Record<keyof typeof EXIT, string>> = {
  ok: 'it was done, and every check was right',
  failed: 'it failed, a check was wrong, or this host cannot do it',
  usage: 'the command line was wrong; nothing has been started',
  interrupted: 'ctrl-C ended it before it was done',
}
