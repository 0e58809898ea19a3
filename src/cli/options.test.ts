import assert from 'node:assert/strict'
import { test } from 'node:test'
import { COMMANDS } from './commands.js'
import { commandHelp, generalHelp } from './help.js'
import { flag, optional, parseOptions, required, withDefault } from './options.js'
import { count, size } from './values.js'

const TABLE = {
  to: required('URI', (text) => text, 'where to'),
  memory: withDefault('SIZE', size, '128M', 'how much'),
  rate: optional('N', count(1), 'how fast'),
  json: flag('for programs', 'j'),
}
const parse = (...args: string[]) => {
  const { operands: _, program: __, ...values } = parseOptions('move', TABLE, args)
  return values
}

test('defaults, values, flags, and the last one wins', () => {
  assert.deepEqual(parse('--to', 'x'), { to: 'x', memory: 128 * 2 ** 20, rate: undefined, json: false })
  assert.deepEqual(parse('--to=x', '--rate', '3', '-j', '--memory=1K', '--memory', '2K'), {
    to: 'x',
    memory: 2048,
    rate: 3,
    json: true,
  })
  assert.equal(parse('--to', '-').to, '-')
})

test('mistakes are named', () => {
  const cases: [string[], RegExp][] = [
    [[], /^--to is needed \(URI\)$/],
    [['--to'], /^--to needs a value: --to URI$/],
    [['--to', '--json'], /^--to needs a value/],
    [['--to', 'x', '--memory', 'much'], /^--memory wants a size/],
    [['--to', 'x', '--mem', '1G'], /^unknown option --mem, perhaps --memory; see farfault move --help$/],
    [['--to', 'x', '-q'], /^unknown option -q;/],
    [['--to', 'x', '--json=1'], /^--json takes no value$/],
    [['--to', 'x', 'now'], /^unexpected argument "now"$/],
  ]
  for (const [args, message] of cases) assert.throws(() => parse(...args), { message }, args.join(' '))
})

test('operands are counted, and what stands behind -- is a program', () => {
  const shape = { operands: ['IMAGE'], program: true }
  const given = parseOptions('run', TABLE, ['vm.img', '--to', 'x', '--', 'qemu', '--json'], shape)
  assert.deepEqual([given.operands, given.program, given.json], [['vm.img'], ['qemu', '--json'], false])
  const wrong: [string[], RegExp][] = [
    [['--to', 'x'], /^IMAGE is missing: farfault run IMAGE$/],
    [['a', 'b', '--to', 'x'], /^unexpected argument "b"$/],
    [['a', '--to', 'x', '--'], /^a program to run is missing behind --$/],
  ]
  for (const [args, message] of wrong)
    assert.throws(() => parseOptions('run', TABLE, args, shape), { message })
  assert.throws(() => parse('--to', 'x', '--', 'qemu'), /runs no program/)
})

test('every default of every command is a value of its option', () => {
  for (const { options } of Object.values(COMMANDS)) {
    for (const option of Object.values(options)) {
      if (!option.required) assert.doesNotThrow(() => option.read(undefined))
    }
  }
})

test('help shows every command and every option, in lines that fit', () => {
  for (const [name, command] of Object.entries(COMMANDS)) {
    assert.match(generalHelp(), new RegExp(`^  ${name} `, 'm'))
    const help = commandHelp(name, command)
    for (const option of Object.keys(command.options))
      assert.match(help, new RegExp(`^  --${option}\\b`, 'm'))
    for (const line of help.split('\n')) assert.ok(line.length <= 100, line)
  }
})
