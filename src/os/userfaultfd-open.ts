// The two doors to a userfaultfd, and the right that each needs. Main thread, and the host probe.

import { HostUnsupportedError } from '../errors.js'
import { errno, errnoName, libc, syscall } from './libc.js'
import { LINUX } from './linux-abi.js'
import { UFFD_USER_MODE_ONLY, USERFAULTFD_IOC_NEW } from './userfaultfd-abi.js'

/** How an attempt to open ended: a descriptor, or the errno's name. */
export type OpenAttempt = { readonly fd: number } | { readonly errno: string }

/** Through the device node, whose file permissions grant the right to serve kernel faults too. Linux 6.1. */
export function openByDevice(userModeOnly: boolean): OpenAttempt {
  const device = libc().open('/dev/userfaultfd', LINUX.O_RDWR | LINUX.O_CLOEXEC, 0)
  if (device === -1) return { errno: errnoName(errno()) }
  // The ioctl takes its flags in place of an address.
  const fd = libc().ioctl(device, USERFAULTFD_IOC_NEW, openFlags(userModeOnly))
  const attempt = fd === -1 ? { errno: errnoName(errno()) } : { fd }
  libc().close(device)
  return attempt
}

/** Through the system call: needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1, unless for user code only. */
export function openBySyscall(userModeOnly: boolean): OpenAttempt {
  const fd = syscall('userfaultfd', openFlags(userModeOnly))
  return fd === -1 ? { errno: errnoName(errno()) } : { fd }
}

function openFlags(userModeOnly: boolean): number {
  return LINUX.O_CLOEXEC | LINUX.O_NONBLOCK | (userModeOnly ? UFFD_USER_MODE_ONLY : 0)
}

/**
 * `userModeOnly` undefined: all faults if this process has the right, otherwise those of user code.
 * @throws HostUnsupportedError when every door is shut.
 */
export function openDescriptor(wanted: boolean | undefined): { fd: number; userModeOnly: boolean } {
  const reasons: string[] = []
  for (const userModeOnly of wanted === undefined ? [false, true] : [wanted]) {
    for (const open of [openByDevice, openBySyscall]) {
      const attempt = open(userModeOnly)
      if ('fd' in attempt) return { fd: attempt.fd, userModeOnly }
      reasons.push(`${open === openByDevice ? '/dev/userfaultfd' : 'system call'}: ${attempt.errno}`)
    }
  }
  throw new HostUnsupportedError(
    `cannot open a userfaultfd (${[...new Set(reasons)].join('; ')}); "farfault probe" says what to change`,
  )
}
