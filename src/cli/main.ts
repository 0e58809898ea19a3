#!/usr/bin/env node
// Entry of the farfault command: finds the command in the table, and turns its end into an exit status. Main thread.

import { messageOf, UsageError } from '../errors.js'
import { leaveProcess } from '../os/leave.js'
import { threadsStarted } from '../thread.js'
import { COMMANDS, type Command } from './commands.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { commandHelp, generalHelp } from './help.js'
import { parseOptions, splitProgram } from './options.js'
import { version } from './version.js'

/** Help that was asked for goes to standard output; help after a mistake does not. */
const print = (text: string): ExitCode => {
  process.stdout.write(`${text}\n`)
  return EXIT.ok
}

const complain = (text: string): void => void process.stderr.write(`farfault: ${text}\n`)

async function main([name, ...args]: readonly string[]): Promise<ExitCode> {
  if (name === '--version' || name === '-v') return print(version())
  if (name === '--help' || name === '-h') return print(generalHelp())
  if (name === 'help') return print(args[0] === undefined ? generalHelp() : helpOf(args[0]))
  if (name === undefined) {
    process.stderr.write(`${generalHelp()}\n`)
    return EXIT.usage
  }
  const command = commandNamed(name)
  const { own } = splitProgram(name, command, args)
  if (own.includes('--help') || own.includes('-h')) return print(commandHelp(name, command))
  const values = parseOptions(name, command.options, args, command)
  if (process.platform !== 'linux') {
    complain(`farfault ${name} runs on Linux only: it is built on userfaultfd. This is ${process.platform}.`)
    return EXIT.failed
  }
  return runReported(command, values)
}

function commandNamed(name: string): Command {
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined
  if (command !== undefined) return command
  throw new UsageError(`unknown command "${name}"; there are ${Object.keys(COMMANDS).join(', ')}`)
}

const helpOf = (name: string): string => commandHelp(name, commandNamed(name))

/** With --json a failure, too, is one JSON document. */
async function runReported(command: Command, values: Parameters<Command['run']>[0]): Promise<ExitCode> {
  try {
    return await command.run(values)
  } catch (error) {
    if (error instanceof UsageError) throw error
    const message = messageOf(error)
    if (values.json === true) print(JSON.stringify({ ok: false, error: message }))
    complain(message)
    return EXIT.failed
  }
}

// Whoever reads the output may go away; that is no reason to lose a guest.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})

/** Behind all other exit listeners, which have let everything go; what was printed is out, as such writes are synchronous. */
function exit(status: ExitCode): never {
  if (threadsStarted() > 0) process.on('exit', leaveProcess)
  process.exit(status)
}

try {
  exit(await main(process.argv.slice(2)))
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  complain(error.message)
  exit(EXIT.usage)
}
