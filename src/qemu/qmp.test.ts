// The client against a scripted server; launch.test.ts has it against real QEMUs.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { ChannelError, ProtocolError } from '../errors.js'
import { connectQmp, type Qmp, QmpError } from './qmp.js'

const GREETING = '{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22}},"capabilities":["oob"]}}'

interface Command {
  readonly execute?: string
  readonly 'exec-oob'?: string
  readonly arguments: Readonly<Record<string, unknown>>
  readonly id: number
}

/** Answers a command with lines; a plain server answers everything with an empty object. */
type Script = (command: Command, socket: Socket) => void

const answerEverything: Script = ({ id }, socket) => socket.write(`{"return": {}, "id": ${id}}\r\n`)

/** Listen on a socket of our own; resolves with its path. */
async function serve(
  t: TestContext,
  script: Script = answerEverything,
  greeting = GREETING,
): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'farfault-qmp-'))
  const path = join(directory, 'qmp')
  const sockets: Socket[] = []
  const server = createServer((socket) => {
    sockets.push(socket)
    socket.on('error', () => {})
    if (greeting !== '') socket.write(`${greeting}\r\n`)
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk
      const lines = text.split('\n')
      text = lines.pop()!
      for (const line of lines) script(JSON.parse(line), socket)
    })
  })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
    rmSync(directory, { recursive: true })
  })
  return path
}

/** A client whose handshake is done; the script sees only what comes after it. */
async function client(t: TestContext, script: Script): Promise<Qmp> {
  const path = await serve(t, (command, socket) => {
    const name = command.execute ?? command['exec-oob']
    const answer = name === 'qmp_capabilities' ? answerEverything : script
    answer(command, socket)
  })
  const qmp = await connectQmp(path)
  t.after(() => qmp.close())
  return qmp
}

test('handshake: oob is enabled when it is offered, and only then', { timeout: 15_000 }, async (t) => {
  const enabled: unknown[] = []
  const record: Script = (command, socket) => {
    enabled.push(command.arguments.enable)
    answerEverything(command, socket)
  }
  const offering = await connectQmp(await serve(t, record))
  const old = await connectQmp(await serve(t, record, GREETING.replace('"oob"', '')))
  assert.deepEqual(enabled, [['oob'], undefined])
  assert.deepEqual([offering.oob, old.oob], [true, false])
  assert.deepEqual(offering.version, { major: 7, minor: 2, micro: 22 })
  await Promise.all([offering.close(), old.close()])
})

test('answers are matched by id, not by order', { timeout: 15_000 }, async (t) => {
  const held: Command[] = []
  const qmp = await client(t, (command, socket) => {
    held.push(command)
    if (held.length < 2) return
    for (const { id, execute } of held.reverse()) socket.write(`{"id": ${id}, "return": "${execute}"}\n`)
  })
  assert.deepEqual(await Promise.all([qmp.execute('first'), qmp.execute('second')]), ['first', 'second'])
})

test('a refusal is a QmpError with the command, class and sentence', { timeout: 15_000 }, async (t) => {
  const qmp = await client(t, ({ id }, socket) =>
    socket.write(`{"id": ${id}, "error": {"class": "CommandNotFound", "desc": "no such command"}}\n`),
  )
  await assert.rejects(qmp.execute('dance'), (error) => {
    assert.ok(error instanceof QmpError)
    const { command, errorClass, description, code } = error
    assert.deepEqual(
      [command, errorClass, description, code],
      ['dance', 'CommandNotFound', 'no such command', 'QMP'],
    )
    return true
  })
})

test('out-of-band commands use exec-oob', { timeout: 15_000 }, async (t) => {
  const qmp = await client(t, (command, socket) =>
    socket.write(`{"id": ${command.id}, "return": ${JSON.stringify(Object.keys(command)[0])}}\n`),
  )
  assert.equal(await qmp.execute('migrate-pause', {}, { oob: true }), 'exec-oob')
  assert.equal(await qmp.execute('migrate-pause'), 'execute')
})

test('no answer: ChannelError in time, a late answer is ignored, the client goes on', {
  timeout: 15_000,
}, async (t) => {
  const late: Command[] = []
  const qmp = await client(t, (command, socket) => {
    late.push(command)
    if (late.length > 1) for (const { id } of late) socket.write(`{"id": ${id}, "return": ${id}}\n`)
  })
  await assert.rejects(qmp.execute('sleep', {}, { timeoutMs: 30 }), ChannelError)
  assert.equal(typeof (await qmp.execute('wake')), 'number')
})

test('events reach listeners and waiters, filtered by name and data', { timeout: 15_000 }, async (t) => {
  const qmp = await client(t, ({ id }, socket) => {
    for (const status of ['setup', 'active']) {
      socket.write(`{"event": "MIGRATION", "data": {"status": "${status}"}, "timestamp": {}}\n`)
    }
    socket.write(`{"event": "error"}\n{"id": ${id}, "return": {}}\n`)
  })
  const seen: string[] = []
  const off = qmp.on('MIGRATION', ({ status }) => seen.push(status))
  const active = qmp.waitForEvent('MIGRATION', { where: ({ status }) => status === 'active' })
  const odd = qmp.waitForEvent('error')
  await qmp.execute('migrate')
  assert.deepEqual(await active, { status: 'active' })
  assert.deepEqual(await odd, {})
  off()
  await qmp.execute('migrate')
  assert.deepEqual(seen, ['setup', 'active'])
  await assert.rejects(qmp.waitForEvent('RESUME', { timeoutMs: 30 }), /RESUME event, 30 ms/)
})

test('an event that is never awaited does not end the process', { timeout: 15_000 }, async (t) => {
  const qmp = await client(t, () => {})
  void qmp.waitForEvent('STOP', { timeoutMs: 10 })
  await new Promise((resolve) => setTimeout(resolve, 40))
})

test('connection lost: everything that waits is rejected, and so is what comes after', {
  timeout: 15_000,
}, async (t) => {
  const qmp = await client(t, (_command, socket) => socket.end())
  const event = qmp.waitForEvent('STOP')
  await assert.rejects(qmp.execute('quit'), ChannelError)
  await assert.rejects(event, ChannelError)
  assert.ok((await qmp.closed) instanceof ChannelError)
  await assert.rejects(qmp.execute('query-status'), ChannelError)
})

test('our own close rejects what waits, and reports no error', { timeout: 15_000 }, async (t) => {
  const qmp = await client(t, () => {})
  const answer = assert.rejects(qmp.execute('sleep'), ChannelError)
  await qmp.close()
  await answer
  assert.equal(await qmp.closed, undefined)
})

for (const [what, bytes] of [
  ['no JSON', 'HTTP/1.1 400 Bad Request\n'],
  ['an answer to no command', '{"return": {}, "id": 1000}\n'],
  [
    'an id that is nested deeper than the stack',
    `{"return": {}, "id": ${'['.repeat(1e5)}${']'.repeat(1e5)}}\n`,
  ],
  ['a greeting like that', `{"QMP": {"version": ${'{"a":'.repeat(1e5)}1${'}'.repeat(1e5)}}}\n`],
  ['an error for no command', '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'],
]) {
  test(`hostile peer: ${what} ends the connection with a ProtocolError`, { timeout: 15_000 }, async (t) => {
    const qmp = await client(t, (_command, socket) => socket.write(bytes!))
    await assert.rejects(qmp.execute('query-status'), ProtocolError)
    assert.ok((await qmp.closed) instanceof ProtocolError)
  })
}

test('a peer that is no QMP server, is silent, or is not there', { timeout: 15_000 }, async (t) => {
  await assert.rejects(connectQmp(await serve(t, answerEverything, 'SSH-2.0-x')), ProtocolError)
  await assert.rejects(connectQmp(await serve(t, answerEverything, ''), { timeoutMs: 30 }), /greeting, 30 ms/)
  await assert.rejects(connectQmp('/nonexistent/qmp'), ChannelError)
})
