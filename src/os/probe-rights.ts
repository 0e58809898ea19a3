// The host probe's central check: may this process open a userfaultfd, and if not, which right is missing.

import { accessSync, existsSync, constants as fsConstants, readFileSync } from 'node:fs'
import { libc } from './libc.js'
import { type Finding, NEWER_KERNEL } from './probe-finding.js'
import { type OpenAttempt, openByDevice, openBySyscall } from './userfaultfd-open.js'

const DEVICE = '/dev/userfaultfd'
const SYSCTL = '/proc/sys/vm/unprivileged_userfaultfd'
const CAP_SYS_PTRACE = 19

export function checkUserfaultfd(): Finding {
  const device = outcome(openByDevice(false))
  if (device === 'ok') return { ok: true, detail: `opened through ${DEVICE}` }
  const call = outcome(openBySyscall(false))
  if (call === 'ok') return { ok: true, detail: `opened by the system call (${grant()})` }
  if (call === 'ENOSYS') {
    return { ok: false, detail: 'this kernel has no userfaultfd (ENOSYS)', remedy: NEWER_KERNEL }
  }
  const tried = `${DEVICE}: ${device}; system call: ${call}`
  if (outcome(openBySyscall(true)) === 'ok') {
    return {
      ok: 'warning',
      detail:
        `only for faults of user code, which is enough for guests inside this process (${tried}; ${rights()}): ` +
        'a system call that meets a missing page fails instead of waiting',
      remedy: `for all faults, ${remedies()}`,
    }
  }
  return {
    ok: false,
    detail: `userfaultfd is not allowed (${tried}; ${rights()})`,
    remedy: `${remedies()}; in a container the seccomp profile must allow it too`,
  }
}

function outcome(attempt: OpenAttempt): string {
  if ('errno' in attempt) return attempt.errno
  libc().close(attempt.fd)
  return 'ok'
}

/** Any one of three rights is enough; say which are there. */
function rights(): string {
  return [
    `${DEVICE} ${deviceState()}`,
    `CAP_SYS_PTRACE ${hasPtrace() ? 'held' : 'not held'}`,
    `vm.unprivileged_userfaultfd=${unprivileged()}`,
  ].join(', ')
}

function grant(): string {
  return hasPtrace() ? 'CAP_SYS_PTRACE' : `vm.unprivileged_userfaultfd=${unprivileged()}`
}

function remedies(): string {
  const user = process.getuid?.() ?? 'USER'
  return [
    'do one of these as root:',
    existsSync(DEVICE) ? `"setfacl -m u:${user}:rw ${DEVICE}",` : '',
    '"setcap cap_sys_ptrace+ep" on the node binary,',
    'or "sysctl vm.unprivileged_userfaultfd=1"',
  ]
    .filter((part) => part !== '')
    .join(' ')
}

function deviceState(): string {
  if (!existsSync(DEVICE)) return 'does not exist (Linux 6.1 has it)'
  try {
    accessSync(DEVICE, fsConstants.R_OK | fsConstants.W_OK)
    return 'accessible'
  } catch {
    return `not accessible to user ${process.getuid?.()}`
  }
}

function hasPtrace(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'
  return ((Number.parseInt(effective.slice(-8), 16) >>> CAP_SYS_PTRACE) & 1) === 1
}

function unprivileged(): string {
  return existsSync(SYSCTL) ? readFileSync(SYSCTL, 'utf8').trim() : 'absent'
}
