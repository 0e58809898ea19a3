// Options of a command as a table: the table parses the command line, checks the values, and prints the help. Pure.

import { parseArgs } from 'node:util'
import { UsageError } from '../errors.js'
import type { Read } from './values.js'

export interface Option<T> {
  /** Stands for the value in the help: `SIZE`. A flag has none. */
  readonly placeholder?: string
  readonly short?: string
  readonly help: string
  /** As it would be typed; shown in the help. */
  readonly fallback?: string
  readonly required?: true
  read(text: string | undefined): T
}

// `any`: a table holds options of every type, and a reader's result cannot be both read and written as unknown.
// biome-ignore lint/suspicious/noExplicitAny: see above
export type OptionTable = Readonly<Record<string, Option<any>>>
export type Values<T extends OptionTable> = { readonly [Name in keyof T]: ReturnType<T[Name]['read']> }

export const flag = (help: string, short?: string): Option<boolean> => ({
  help,
  ...(short === undefined ? {} : { short }),
  read: (text) => text !== undefined,
})

export const optional = <T>(placeholder: string, read: Read<T>, help: string): Option<T | undefined> => ({
  placeholder,
  help,
  read: (text) => (text === undefined ? undefined : read(text)),
})

export const withDefault = <T>(
  placeholder: string,
  read: Read<T>,
  fallback: string,
  help: string,
): Option<T> => ({ placeholder, help, fallback, read: (text) => read(text ?? fallback) })

export const required = <T>(placeholder: string, read: Read<T>, help: string): Option<T> => ({
  placeholder,
  help,
  required: true,
  read: (text) => {
    if (text === undefined) throw new UsageError(`is needed (${placeholder})`)
    return read(text)
  },
})

/** What a command takes besides options. */
export interface OperandShape {
  /** Names of the operands it needs, for the help: `IMAGE`. None unless given. */
  readonly operands?: readonly string[]
  /** It takes a program to run, behind `--`. */
  readonly program?: boolean
}

export interface Operands {
  /** As many as the shape names. */
  readonly operands: readonly string[]
  /** What stands behind `--`; empty when there is none. */
  readonly program: readonly string[]
}

/** Everything behind the first `--` is a program with options of its own. @throws UsageError */
export function splitProgram(
  command: string,
  shape: OperandShape,
  args: readonly string[],
): { own: readonly string[]; program: readonly string[] } {
  const at = args.indexOf('--')
  if (at < 0) return { own: args, program: [] }
  const program = args.slice(at + 1)
  if (program.length === 0) throw new UsageError('a program to run is missing behind --')
  if (shape.program !== true) throw new UsageError(`farfault ${command} runs no program: unexpected --`)
  return { own: args.slice(0, at), program }
}

/** @throws UsageError that names the option and says what it takes. */
export function parseOptions<T extends OptionTable>(
  command: string,
  table: T,
  args: readonly string[],
  shape: OperandShape = {},
): Values<T> & Operands {
  const { own, program } = splitProgram(command, shape, args)
  const { given, operands } = collect(command, table, own)
  checkOperands(command, shape.operands ?? [], operands)
  const values: Record<string, unknown> = {}
  for (const [name, option] of Object.entries(table)) {
    try {
      values[name] = option.read(given.get(name))
    } catch (error) {
      throw error instanceof UsageError ? new UsageError(`--${name} ${error.message}`) : error
    }
  }
  return { ...(values as Values<T>), operands, program }
}

function checkOperands(command: string, wanted: readonly string[], given: readonly string[]): void {
  const extra = given[wanted.length]
  if (extra !== undefined) throw new UsageError(`unexpected argument "${extra}"`)
  const missing = wanted[given.length]
  if (missing === undefined) return
  throw new UsageError(`${missing} is missing: farfault ${command} ${wanted.join(' ')}`)
}

/** The text given for each option; a flag's is empty. The last one wins. */
function collect(
  command: string,
  table: OptionTable,
  args: readonly string[],
): { given: Map<string, string>; operands: string[] } {
  const options = Object.fromEntries(
    Object.entries(table).map(([name, { placeholder, short }]) => [
      name,
      {
        type: placeholder === undefined ? ('boolean' as const) : ('string' as const),
        ...(short === undefined ? {} : { short }),
      },
    ]),
  )
  const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true })
  const given = new Map<string, string>()
  const operands: string[] = []
  for (const token of tokens) {
    if (token.kind === 'positional') operands.push(token.value)
    if (token.kind !== 'option') continue
    const option = table[token.name]
    if (option === undefined) {
      throw new UsageError(
        `unknown option ${token.rawName}${guess(token.name, table)}; see farfault ${command} --help`,
      )
    }
    given.set(token.name, textOf(token, option))
  }
  return { given, operands }
}

interface OptionToken {
  readonly name: string
  readonly value: string | undefined
  readonly inlineValue: boolean | undefined
}

function textOf({ name, value, inlineValue }: OptionToken, { placeholder }: Option<unknown>): string {
  if (placeholder === undefined) {
    if (value !== undefined) throw new UsageError(`--${name} takes no value`)
    return ''
  }
  // A value that looks like an option is one: its own value was forgotten.
  if (value === undefined || (!inlineValue && /^-./.test(value))) {
    throw new UsageError(`--${name} needs a value: --${name} ${placeholder}`)
  }
  return value
}

/** The option that was probably meant: one that begins alike. */
function guess(name: string, table: OptionTable): string {
  const alike = Object.keys(table).find(
    (known) => known.startsWith(name) || known.slice(0, 4) === name.slice(0, 4),
  )
  return alike === undefined ? '' : `, perhaps --${alike}`
}
