#!/usr/bin/env node
// Makes a bare Debian 12 machine a test host: two QEMUs, a small Linux guest, and newer kernel headers.
//
//   node scripts/setup-qemu.mjs [--quiet]
//
// Safe to run anywhere and at any time: what is present is left alone (a second run takes well under a second), what
// cannot be had is reported with its reason. The last line is JSON: what is available, and what is missing and why.
// The exit code is 0, unless CI is set and something is missing.
//
// Only QEMU 7.2 and busybox are installed in the system (by apt, as root). Everything else is unpacked into `.cache`,
// through an apt state of its own, so that neither the host's sources nor its packages change:
//   .cache/bin/qemu-10.0        wrapper that starts the QEMU of bookworm-backports
//   .cache/guest/vmlinuz        Debian's cloud kernel;  .cache/guest/initrd.gz: prints "beat N" every 200 ms
//   .cache/headers/usr/include  linux/userfaultfd.h and friends of a newer kernel, for the ABI test

import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { gzipSync } from 'node:zlib'

const CACHE = join(dirname(fileURLToPath(import.meta.url)), '..', '.cache')
const APT_STATE = join(CACHE, 'apt')
const MIRROR = 'http://deb.debian.org/debian'
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
const COMMAND_TIMEOUT_MS = 5 * 60_000
/** Lists of our own apt state older than this are fetched again before a download. */
const LISTS_AGE_MS_MAX = 6 * 3600_000

export const PATHS = {
  qemuSystem: '/usr/bin/qemu-system-x86_64',
  qemuBackport: join(CACHE, 'bin', 'qemu-10.0'),
  kernel: join(CACHE, 'guest', 'vmlinuz'),
  initrd: join(CACHE, 'guest', 'initrd.gz'),
  headers: join(CACHE, 'headers', 'usr', 'include'),
}

/** In this order: the later parts use libraries and the busybox of the earlier ones. */
const PARTS = [
  {
    name: 'qemu-system',
    path: PATHS.qemuSystem,
    usable: qemuVersion,
    needs: ['root', 'apt'],
    make: installQemu,
  },
  { name: 'qemu-10.0', path: PATHS.qemuBackport, usable: qemuVersion, needs: ['bookworm'], make: unpackQemu },
  {
    name: 'guest-kernel',
    path: PATHS.kernel,
    usable: fs.existsSync,
    needs: ['bookworm'],
    make: unpackKernel,
  },
  { name: 'guest-initrd', path: PATHS.initrd, usable: fs.existsSync, needs: [], make: buildInitrd },
  { name: 'headers', path: PATHS.headers, usable: hasHeaders, needs: ['bookworm'], make: unpackHeaders },
]

/** What a part may need of the host: a test, and what to say when it fails. */
const NEEDS = {
  root: [() => process.getuid?.() === 0, 'needs root to install packages'],
  apt: [() => fs.existsSync('/usr/bin/apt-get'), 'needs apt-get (Debian or a relative)'],
  bookworm: [isBookworm, 'needs Debian 12 (bookworm) on amd64: it unpacks packages of that release'],
}

/**
 * Set up every part that is not there yet.
 * @param {(line: string) => void} log where progress goes
 * @returns {{ available: Record<string, string>, missing: Record<string, string> }}
 *   name → path (and version) of what can be used; name → reason for what cannot.
 */
export function setup(log = () => {}) {
  const result = { available: {}, missing: {} }
  for (const part of PARTS) {
    try {
      if (!part.usable(part.path)) {
        const lacking = part.needs.map((need) => NEEDS[need]).find(([test]) => !test())
        if (lacking) throw new Error(lacking[1])
        log(`${part.name}: setting up…`)
        part.make()
      }
      const version = part.usable(part.path)
      if (!version) throw new Error(`set up, but ${part.path} is not usable`)
      result.available[part.name] = version === true ? part.path : `${part.path} (${version})`
    } catch (error) {
      result.missing[part.name] = error.message
      log(`${part.name}: missing: ${error.message}`)
    }
  }
  return result
}

function isBookworm() {
  const release = fs.existsSync('/etc/os-release') ? fs.readFileSync('/etc/os-release', 'utf8') : ''
  return process.arch === 'x64' && /^VERSION_CODENAME=bookworm$/m.test(release)
}

/** The version a QEMU reports, or false when it does not start. */
function qemuVersion(path) {
  if (!fs.existsSync(path)) return false
  const { stdout } = spawnSync(path, ['--version'], { encoding: 'utf8', timeout: 10_000 })
  return /version (\d+\.\d+\.\d+)/.exec(stdout ?? '')?.[1] ?? false
}

function hasHeaders(path) {
  return fs.existsSync(join(path, 'linux', 'userfaultfd.h'))
}

/** Run a command to its end; its output is shown only when it fails. */
function run(command, args, options = {}) {
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' }
  const { error, status, stdout, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    timeout: COMMAND_TIMEOUT_MS,
    maxBuffer: 64 * 1024 * 1024,
    env,
    ...options,
  })
  if (error) throw new Error(`${command} ${args.at(-1)}: ${error.message}`)
  if (status !== 0) {
    throw new Error(
      `${command} ${args.at(-1)}: exit ${status}: ${stderr.trim().split('\n').slice(-3).join(' | ')}`,
    )
  }
  return stdout
}

const APT_PATIENCE = [
  '-o',
  'Acquire::Retries=2',
  '-o',
  'Acquire::http::Timeout=30',
  '-o',
  'DPkg::Lock::Timeout=120',
]

/** QEMU 7.2 of Debian 12, or whatever version this distribution has, and the static busybox for the initrd. */
function installQemu() {
  const packages = ['qemu-system-x86', 'seabios', 'busybox-static']
  const install = ['install', '-y', '-q', '--no-install-recommends', ...packages]
  try {
    run('apt-get', [...APT_PATIENCE, ...install])
  } catch {
    // No lists, or lists so old that the files they name are gone from the mirror.
    run('apt-get', [...APT_PATIENCE, 'update', '-q'])
    run('apt-get', [...APT_PATIENCE, ...install])
  }
}

/** Run apt on a state of our own: bookworm and its backports, whatever the host's sources are. Returns its stdout. */
function privateApt(command, args, cwd = APT_STATE) {
  const sources = join(APT_STATE, 'sources.list')
  const lists = join(APT_STATE, 'lists')
  const archives = join(APT_STATE, 'archives')
  fs.mkdirSync(join(lists, 'partial'), { recursive: true })
  fs.mkdirSync(join(archives, 'partial'), { recursive: true })
  const suites = ['bookworm', 'bookworm-updates', 'bookworm-backports']
  fs.writeFileSync(
    sources,
    suites.map((suite) => `deb [signed-by=${KEYRING}] ${MIRROR} ${suite} main\n`).join(''),
  )
  const options = {
    'Dir::Etc::sourcelist': sources,
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::State::Lists': lists,
    'Dir::Cache::archives': archives,
    'Dir::Cache::pkgcache': '',
    'Dir::Cache::srcpkgcache': '',
    'Debug::NoLocking': '1',
    // The download user of apt cannot write below a home directory; files are verified all the same.
    'APT::Sandbox::User': 'root',
  }
  const flags = [
    ...APT_PATIENCE,
    ...Object.entries(options).flatMap(([key, value]) => ['-o', `${key}=${value}`]),
  ]
  refreshLists(flags)
  return run(command, [...flags, ...args], { cwd })
}

/** Why the lists could not be fetched: without a network each part would else wait for the same timeouts again. */
let listsError

function refreshLists(flags) {
  if (listsError) throw listsError
  const stamp = join(APT_STATE, 'updated')
  const age = fs.existsSync(stamp) ? Date.now() - fs.statSync(stamp).mtimeMs : Number.POSITIVE_INFINITY
  if (age <= LISTS_AGE_MS_MAX) return
  try {
    // Without --error-on a list that cannot be fetched is a warning, and the exit code is 0.
    run('apt-get', [...flags, '-q', '--error-on=any', 'update'])
    fs.writeFileSync(stamp, '')
  } catch (error) {
    listsError = error
    throw error
  }
}

/** Fill a directory under a temporary name and move it into place, so that a half-made one is never seen. */
function makeDirectory(path, fill) {
  const temporary = `${path}.new-${process.pid}`
  fs.rmSync(temporary, { recursive: true, force: true })
  fs.mkdirSync(temporary, { recursive: true })
  try {
    fill(temporary)
    fs.rmSync(path, { recursive: true, force: true })
    fs.renameSync(temporary, path)
  } finally {
    fs.rmSync(temporary, { recursive: true, force: true })
  }
}

/** Unpack packages of bookworm-backports below `root`; `onlyNamed` leaves out what they depend on. */
function unpackPackages(root, packages, { backports = true, onlyNamed = false } = {}) {
  const downloads = join(root, '.debs')
  fs.mkdirSync(join(downloads, 'partial'), { recursive: true })
  const suite = backports ? ['-t', 'bookworm-backports'] : []
  const args = onlyNamed
    ? ['download', ...suite, ...packages]
    : [
        'install',
        '--download-only',
        '--no-install-recommends',
        '-y',
        '-o',
        `Dir::Cache::archives=${downloads}`,
      ]
        .concat(suite)
        .concat(packages)
  privateApt('apt-get', ['-q', ...args], downloads)
  for (const file of fs.readdirSync(downloads).filter((name) => name.endsWith('.deb'))) {
    run('dpkg-deb', ['-x', join(downloads, file), root])
  }
  fs.rmSync(downloads, { recursive: true })
}

/** The wrapper finds its files relative to itself: the repository may be moved. */
const QEMU_WRAPPER = `#!/bin/sh
root=$(cd "$(dirname "$0")/../qemu-10.0" && pwd)
export LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu"
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
`

function unpackQemu() {
  // qemu-system-data and seabios by name: those of 7.2 are installed, but we want the ones that belong to 10.0.
  const packages = ['qemu-system-x86', 'qemu-system-common', 'qemu-system-data', 'seabios']
  makeDirectory(join(CACHE, 'qemu-10.0'), (root) => unpackPackages(root, packages))
  fs.mkdirSync(dirname(PATHS.qemuBackport), { recursive: true })
  fs.writeFileSync(PATHS.qemuBackport, QEMU_WRAPPER, { mode: 0o755 })
}

function unpackHeaders() {
  makeDirectory(join(CACHE, 'headers'), (root) =>
    unpackPackages(root, ['linux-libc-dev'], { onlyNamed: true }),
  )
}

function unpackKernel() {
  // The metapackage names the kernel of the day in its dependencies.
  const depends = privateApt('apt-cache', ['depends', '--important', 'linux-image-cloud-amd64/bookworm'])
  const image = /Depends: (linux-image-\S+-cloud-amd64)/.exec(depends)?.[1]
  if (!image) throw new Error('no kernel package found in the lists of bookworm')
  const directory = dirname(PATHS.kernel)
  fs.mkdirSync(directory, { recursive: true })
  const unpacked = join(CACHE, `kernel-${process.pid}`)
  try {
    unpackPackages(unpacked, [image], { backports: false, onlyNamed: true })
    const name = fs.readdirSync(join(unpacked, 'boot')).find((file) => file.startsWith('vmlinuz-'))
    fs.renameSync(join(unpacked, 'boot', name), PATHS.kernel)
  } finally {
    fs.rmSync(unpacked, { recursive: true, force: true })
  }
}

const INIT_SCRIPT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
n=0
while true; do
  n=$((n + 1))
  echo "beat $n"
  /bin/busybox usleep 200000
done
`

function buildInitrd() {
  const busybox = '/bin/busybox'
  if (!fs.existsSync(busybox)) throw new Error('needs busybox-static')
  const archive = cpio([
    ...['bin', 'dev', 'proc', 'sys'].map((name) => ({ name, mode: 0o040755 })),
    // Without a console node the kernel starts init with no stdout, and no beat is seen.
    { name: 'dev/console', mode: 0o020600, device: [5, 1] },
    { name: 'bin/busybox', mode: 0o100755, data: fs.readFileSync(busybox) },
    { name: 'init', mode: 0o100755, data: Buffer.from(INIT_SCRIPT) },
  ])
  fs.mkdirSync(dirname(PATHS.initrd), { recursive: true })
  const temporary = `${PATHS.initrd}.new-${process.pid}`
  fs.writeFileSync(temporary, gzipSync(archive))
  fs.renameSync(temporary, PATHS.initrd)
}

/** A "newc" cpio archive (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst). */
function cpio(entries) {
  const padTo4 = (length) => Buffer.alloc(-length & 3)
  const all = [...entries, { name: 'TRAILER!!!', mode: 0 }]
  return Buffer.concat(
    all.flatMap(({ name, mode, data = Buffer.alloc(0), device = [0, 0] }, inode) => {
      // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
      const fields = [inode + 1, mode, 0, 0, 1, 0, data.length, 0, 0, ...device, name.length + 1, 0]
      const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}\0`
      return [Buffer.from(header), padTo4(header.length), data, padTo4(data.length)]
    }),
  )
}

function main() {
  const quiet = process.argv.includes('--quiet')
  const result = setup(quiet ? undefined : (line) => console.error(line))
  console.log(JSON.stringify(result))
  if (process.env.CI && Object.keys(result.missing).length > 0) process.exitCode = 1
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main()
