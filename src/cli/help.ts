// Help texts, made from the tables. Pure.

import { COMMANDS, type Command } from './commands.js'
import { EXIT, EXIT_MEANING } from './exit-codes.js'
import type { Option } from './options.js'

const WIDTH = 100

export function generalHelp(): string {
  const names = Object.keys(COMMANDS)
  const width = Math.max(...names.map((name) => name.length))
  return [
    'farfault: postcopy live migration. The guest runs first, and its memory moves later.',
    '',
    'Usage: farfault COMMAND [OPTIONS]',
    '',
    ...names.map((name) => `  ${name.padEnd(width)}  ${COMMANDS[name]!.summary}`),
    '',
    'farfault COMMAND --help shows the options of a command; farfault --version prints the version.',
    '',
    ...exitCodes(),
  ].join('\n')
}

export function commandHelp(name: string, command: Command): string {
  const { summary, options, notes, examples, operands = [], program = false } = command
  const rows = Object.entries(options).map(([option, row]) => [left(option, row), right(row)] as const)
  const width = Math.max(...rows.map(([text]) => text.length))
  const optionLines = rows.flatMap(([text, help]) => {
    const [first = '', ...rest] = wrap(help, WIDTH - width - 4)
    return [`  ${text.padEnd(width)}  ${first}`, ...rest.map((line) => `${' '.repeat(width + 4)}${line}`)]
  })
  return [
    `farfault ${name}: ${summary}`,
    '',
    `Usage: ${['farfault', name, ...operands, '[OPTIONS]', ...(program ? ['[-- PROGRAM…]'] : [])].join(' ')}`,
    '',
    ...optionLines,
    ...notes.flatMap((note) => ['', ...wrap(note, WIDTH)]),
    '',
    'Examples:',
    ...examples.map((example) => `  ${example}`),
    '',
    'Sizes: 4096, 128M, 1G (powers of 1024). Times: 25ms, 2s, 5m.',
    ...exitCodes(),
  ].join('\n')
}

const left = (name: string, { placeholder, short }: Option<unknown>): string =>
  `--${name}${short === undefined ? '' : `, -${short}`}${placeholder === undefined ? '' : ` ${placeholder}`}`

function right({ help, fallback, required }: Option<unknown>): string {
  if (required) return `${help} (required)`
  return fallback === undefined ? help : `${help} (${fallback})`
}

function exitCodes(): string[] {
  const codes = Object.entries(EXIT).map(([name, code]) => {
    return `  ${String(code).padStart(3)}  ${EXIT_MEANING[name as keyof typeof EXIT]}`
  })
  return ['Exit status:', ...codes]
}

/** Lines of at most `width` columns, broken at spaces. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = ['']
  for (const word of text.split(' ')) {
    const line = lines[lines.length - 1]!
    if (line === '') lines[lines.length - 1] = word
    else if (line.length + 1 + word.length <= width) lines[lines.length - 1] = `${line} ${word}`
    else lines.push(word)
  }
  return lines
}
