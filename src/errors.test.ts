import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  CancelledError,
  ChannelError,
  errorFromMessage,
  errorToMessage,
  FarfaultError,
  GuestError,
  HostUnsupportedError,
  IllegalTransition,
  ImageError,
  ProtocolError,
  SystemError,
  TlsError,
  UsageError,
} from './errors.js'

const cause = new ChannelError('the line is cut')
const EXAMPLES = [
  new FarfaultError('SOME', 'something'),
  new ProtocolError('a page came twice', {
    offset: 12,
    record: 'ram page record',
    expected: 'one',
    got: 'two',
  }),
  new IllegalTransition('postcopy', 'none', 'listen'),
  new ChannelError('reset', { cause }),
  new SystemError('mmap', 'ENOMEM', '4096 bytes'),
  new HostUnsupportedError('no userfaultfd here'),
  new ImageError('cut short', '/tmp/image', 4096),
  new GuestError('it broke', { cause: new TypeError('a plain one') }),
  new UsageError('no such option'),
  new CancelledError(),
  new TlsError('expired', 'too late'),
]

/** What a class adds to `Error`. */
function fieldsOf(error: Error): Record<string, unknown> {
  const { name: _name, cause: _cause, ...fields } = error as Error & Record<string, unknown>
  return fields
}

for (const error of EXAMPLES) {
  test(`${error.name} crosses a thread boundary whole`, () => {
    const there = errorFromMessage(structuredClone(errorToMessage(error)))
    assert(there instanceof error.constructor && there instanceof FarfaultError && there instanceof Error)
    assert.deepEqual(fieldsOf(there), fieldsOf(error))
    for (const field of ['name', 'message', 'stack'] as const) assert.equal(there[field], error[field])
    const [here, over] = [error.cause, there.cause] as (Error | undefined)[]
    assert.equal(over?.message, here?.message)
    assert.equal(over?.name, here?.name)
  })
}

test('codes are different, and the messages say where', () => {
  assert.equal(new Set(EXAMPLES.map(({ code }) => code)).size, EXAMPLES.length)
  assert.equal(
    EXAMPLES[1]!.message,
    'a page came twice (ram page record at stream offset 12, expected one, got two)',
  )
  assert.equal(EXAMPLES[4]!.message, 'mmap: ENOMEM (4096 bytes)')
})

test('what is no error of ours crosses as a plain error', () => {
  const plain = errorFromMessage(errorToMessage(new RangeError('too far')))
  assert(plain instanceof Error && !(plain instanceof FarfaultError))
  assert.equal(plain.message, 'too far')
  assert.equal(errorFromMessage(errorToMessage('a thrown string')).message, 'a thrown string')
})
