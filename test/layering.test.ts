// The shape of the house, as ARCHITECTURE.md says it: who may import whom, and how large a file may grow.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..')
const SRC = join(ROOT, 'src')
const FILE_LINES_MAX = 400

/** The files at the top of `src`, but for the barrel: imported by everyone, and importing nothing but each other. */
const isCommon = (path: string): boolean => !path.includes('/') && path !== 'index.ts'
/** What an engine may know of guests: what they are, how to ask them; not how they are made. */
const GUEST_INTERFACE = [
  'guest/guest.ts',
  'guest/guest-handle.ts',
  'guest/guest-messages.ts',
  'guest/guest-remote.ts',
]
const ENGINE = ['wire/', 'ram/', 'os/', 'tls/', ...GUEST_INTERFACE]

/** Folder: what its files may import besides the common files and the folder itself. A prefix that ends in `/` is a folder. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  os: [],
  wire: [],
  tls: ['os/'],
  ram: ['os/'],
  order: ['ram/'],
  guest: ['os/', 'ram/', 'wire/'],
  source: [...ENGINE, 'order/'],
  destination: ENGINE,
  image: ['wire/', 'ram/', 'order/', 'os/', 'tls/', 'source/', ...GUEST_INTERFACE],
  replay: ['ram/', 'order/', 'source/window.ts', 'source/yielding.ts', 'image/working-set-file.ts'],
  qemu: [],
  vm: ['image/', 'order/', 'qemu/', 'source/', 'os/', 'tls/'],
  cli: ['index.ts', 'qemu/', 'order/orders.ts', 'os/leave.ts'],
}

interface SourceFile {
  /** Path under `src`. */
  readonly path: string
  readonly text: string
  /** Paths under `src`. */
  readonly imports: readonly string[]
  readonly packages: readonly string[]
}

const SPECIFIER = /^(?:import|export)\s[^'"`;=(]*?\bfrom '([^']+)'|^import '([^']+)'|\bimport\('([^']+)'\)/gm

function readSource(path: string): SourceFile {
  const text = readFileSync(join(SRC, path), 'utf8')
  const specifiers = [...text.matchAll(SPECIFIER)].map(
    ([, named, bare, dynamic]) => (named ?? bare ?? dynamic)!,
  )
  const imports = specifiers
    .filter((specifier) => specifier.startsWith('.'))
    .map((specifier) => relative(SRC, join(SRC, dirname(path), specifier.replace(/\.js$/, '.ts'))))
  return { path, text, imports, packages: specifiers.filter((specifier) => !/^(\.|node:)/.test(specifier)) }
}

/** Everything that is shipped: tests and their fixtures may look where they like. */
const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' })
  .filter((path) => /\.ts$/.test(path) && !/\.(test|fixture)\.ts$/.test(path))
  .map(readSource)

const covers = (allowed: string, path: string): boolean =>
  allowed.endsWith('/') ? path.startsWith(allowed) : path === allowed

/** `file imports what it may not`, for each that does. */
function trespasses(): string[] {
  return files.flatMap(({ path, imports }) => {
    if (path === 'index.ts') return []
    const folder = path.includes('/') ? path.slice(0, path.indexOf('/')) : undefined
    const allowed = folder === undefined ? [] : MAY_IMPORT[folder]
    if (allowed === undefined) return [`${path} is in a folder that the table does not know`]
    const own = folder === undefined ? [] : [`${folder}/`]
    return imports
      .filter((target) => !isCommon(target) && ![...own, ...allowed].some((each) => covers(each, target)))
      .map((target) => `${path} imports ${target}`)
  })
}

test('files are found, and their imports', () => {
  assert(files.length > 50, `only ${files.length} files`)
  const thread = files.find(({ path }) => path === 'destination/destination-thread.ts')!
  assert(thread.imports.includes('os/channel.ts') && thread.imports.includes('errors.ts'))
})

test('nobody imports from above or from beside', () => {
  assert.deepEqual(trespasses(), [])
})

const PACKAGES: Readonly<Record<string, string>> = {
  koffi: 'os/',
  v86: 'guest/',
  '@node-rs/xxhash': 'image/',
}

test('foreign packages stay where they belong', () => {
  const outside = files.flatMap(({ path, packages }) =>
    packages
      .filter((name) => PACKAGES[name] === undefined || !path.startsWith(PACKAGES[name]))
      .map((name) => `${path} imports ${name}`),
  )
  assert.deepEqual(outside, [])
  const loaders = files.filter(({ text }) => text.includes("('koffi')")).map(({ path }) => path)
  assert.deepEqual(loaders, ['os/libc.ts'])
})

test('only index.ts is a barrel', () => {
  const barrels = files.filter(
    ({ path, text }) =>
      path !== 'index.ts' &&
      !/^(?:export )?(?:async )?(?:const|function|class|interface|type|let) /m.test(text),
  )
  assert.deepEqual(
    barrels.map(({ path }) => path),
    [],
  )
  const inside = files.filter(({ path, imports }) => !path.startsWith('cli/') && imports.includes('index.ts'))
  assert.deepEqual(
    inside.map(({ path }) => path),
    [],
  )
})

test(`no file has more than ${FILE_LINES_MAX} lines`, () => {
  const long = files.filter(({ text }) => text.split('\n').length > FILE_LINES_MAX).map(({ path }) => path)
  assert.deepEqual(long, [])
})
