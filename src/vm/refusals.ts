// Why QEMU did not take a VM, in plain words and with what to do. A table of what its messages look like. Pure.

interface Reason {
  readonly pattern: RegExp
  readonly say: (match: RegExpExecArray, machine: string) => string
}

const REASONS: readonly Reason[] = [
  {
    pattern: /Machine type received is '([^']*)' and local is '([^']*)'/,
    say: ([, stored, here]) =>
      `the VM was parked on the machine type ${stored}, and this QEMU was started with ${here}: start it with -machine ${stored}`,
  },
  {
    pattern: /Size mismatch: (\S+): 0x([0-9a-f]+) != 0x([0-9a-f]+)/,
    say: ([, block, stored, here]) =>
      `RAM block ${block} has ${Number.parseInt(stored!, 16)} bytes in the image and ${Number.parseInt(here!, 16)} in this QEMU: ` +
      'start it with the same memory (-m) and firmware as at the save',
  },
  {
    pattern: /Unknown ramblock "([^"]*)"/,
    say: ([, block]) =>
      `the image has RAM block ${block}, and this QEMU has not: start it with the same devices and memory backends as at the save`,
  },
  {
    pattern: /Unknown savevm section or instance '([^']*)'/,
    say: ([, device]) =>
      `the image has the device ${device}, and this QEMU has not: start it with the same devices as at the save`,
  },
  {
    pattern: /Postcopy needs matching RAM page sizes/,
    say: () =>
      'the RAM of this QEMU is on pages of another size: use the same memory backend (huge pages or not) as at the save',
  },
  {
    pattern: /userfaultfd not available|Postcopy is not supported|userfault/i,
    say: () =>
      'this QEMU may not use userfaultfd: run it as root, give it access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1 ' +
      '(farfault probe says which)',
  },
  {
    pattern: /error while loading state for instance (\S+) of device '([^']*)'/,
    say: ([, , device]) =>
      `the state of device ${device} does not fit this QEMU: start it with the same devices as at the save`,
  },
  {
    pattern: /unsupported version (\d+) for '([^']*)' v(\d+)/,
    say: ([, stored, device, here]) =>
      `the state of ${device} has version ${stored}, and this QEMU knows ${here} at most: it is older than the one that saved it`,
  },
]

/** @param said QEMU's error output. */
export function explainRefusal(said: string, machine: string): string {
  for (const { pattern, say } of REASONS) {
    const match = pattern.exec(said)
    if (match !== null) return `QEMU did not take the VM: ${say(match, machine)}.\nIts own words:\n${said}`
  }
  return `QEMU did not take the VM. Its own words:\n${said}`
}
