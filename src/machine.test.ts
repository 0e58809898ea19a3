import assert from 'node:assert/strict'
import { test } from 'node:test'
import { INCOMING_STATUS, POSTCOPY_STATE } from './destination/status.js'
import { IllegalTransition } from './errors.js'
import { createMachine, diagram, type Table } from './machine.js'
import { SOURCE_STATUS } from './source/status.js'

const TABLES: Record<string, Table> = { SOURCE_STATUS, INCOMING_STATUS, POSTCOPY_STATE }

for (const [name, table] of Object.entries(TABLES)) {
  test(`${name}: every (state, event) pair moves as the table says or throws without moving`, () => {
    const states = Object.keys(table)
    const events = new Set(Object.values(table).flatMap((row) => Object.keys(row)))
    for (const [number, from] of states.entries()) {
      for (const event of events) {
        const cell = new Int32Array([number])
        const machine = createMachine(name, table, cell, 0)
        const to = table[from]![event]
        if (to === undefined) {
          assert.throws(() => machine.step(event), IllegalTransition)
          assert.equal(machine.state(), from)
        } else {
          assert.equal(machine.step(event), to)
          assert.equal(machine.state(), to)
        }
      }
    }
  })

  test(`${name}: every target is a state, and every state can be reached`, () => {
    const states = Object.keys(table)
    const reached = new Set([states[0]!])
    for (const state of reached) for (const to of Object.values(table[state]!)) reached.add(to)
    assert.deepEqual([...reached].sort(), [...states].sort())
  })
}

test('a property of Object.prototype is not an event', () => {
  const machine = createMachine('m', { none: {} } as Table, new Int32Array(1), 0)
  assert.throws(() => machine.step('toString'), IllegalTransition)
})

test('the diagram names every move', () => {
  const text = diagram(POSTCOPY_STATE)
  assert.match(text, /listening --> running: run/)
})
