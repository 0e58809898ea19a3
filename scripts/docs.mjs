#!/usr/bin/env node
// Rewrites the generated parts of ARCHITECTURE.md from the tables in the code. Run after `npm run build`.
//   node scripts/docs.mjs          rewrite
//   node scripts/docs.mjs --check  exit 1 if that would change anything

import { readFileSync, writeFileSync } from 'node:fs'
import { INCOMING_STATUS, POSTCOPY_STATE } from '../dist/src/destination/status.js'
import { diagram } from '../dist/src/machine.js'
import { ORDERS } from '../dist/src/order/orders.js'
import { SOURCE_STATUS } from '../dist/src/source/status.js'
import { COMMANDS, RETURN_PATH } from '../dist/src/wire/messages.js'
import { RECORD_IDS } from '../dist/src/wire/sections.js'

const FILE = new URL('../ARCHITECTURE.md', import.meta.url)

const states = Object.entries({
  'The outgoing migration': SOURCE_STATUS,
  'The incoming migration': INCOMING_STATUS,
  'How far postcopy has come at the destination': POSTCOPY_STATE,
})
  .map(([title, table]) => `**${title}**\n\`\`\`mermaid\n${diagram(table)}\n\`\`\``)
  .join('\n\n')

const length = (body) => body.fixed ?? 'variable'
const messages = [
  '| record | first byte |\n|---|---|',
  ...Object.entries(RECORD_IDS).map(([name, id]) => `| ${name} | 0x${id.toString(16).padStart(2, '0')} |`),
  '\n| command, source to destination | id | length of the body |\n|---|---|---|',
  ...Object.entries(COMMANDS).map(([name, { id, body }]) => `| ${name} | ${id} | ${length(body)} |`),
  '\n| return path, destination to source | id | length of the body |\n|---|---|---|',
  ...Object.entries(RETURN_PATH).map(([name, { id, body }]) => `| ${name} | ${id} | ${length(body)} |`),
].join('\n')

const yes = (value) => (value ? 'yes' : '')
const orders = [
  '| `--order` | recorded pages first | a demanded page brings its group | the scan goes | in words |\n|---|---|---|---|---|',
  ...Object.entries(ORDERS).map(
    ([name, { recorded, around, scan, summary }]) =>
      `| ${name} | ${yes(recorded)} | ${yes(around)} | ${scan === 'behind' ? 'on, behind it' : 'outward, both ways'} | ${summary} |`,
  ),
].join('\n')

const before = readFileSync(FILE, 'utf8')
let after = before
for (const [name, text] of Object.entries({ states, messages, orders })) {
  const pattern = new RegExp(`(<!-- generated: ${name} -->\n)[\\s\\S]*?(<!-- end -->)`)
  after = after.replace(pattern, (_, open, close) => `${open}${text}\n${close}`)
}
if (process.argv.includes('--check')) {
  if (after !== before) {
    console.error('ARCHITECTURE.md is not what the tables say: run node scripts/docs.mjs')
    process.exitCode = 1
  }
} else {
  writeFileSync(FILE, after)
}
