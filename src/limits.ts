// Every bound on what a peer or a user can make us do, in one place. Imported by every part.

import { UsageError } from './errors.js'

const KiB = 1024
const MiB = 1024 * KiB

export const LIMITS = {
  /** Machine type name in the configuration section, bytes. */
  machineNameBytesMax: 255,
  /** Capabilities listed in the configuration section. */
  capabilitiesMax: 64,
  /** Description of the device sections at the end of a precopy stream (JSON, not interpreted), bytes. */
  vmDescriptionBytesMax: 16 * MiB,
  /** RAM blocks in one guest. */
  ramBlocksMax: 1024,
  /** Sum of all RAM blocks, bytes: addresses must stay exact as JS numbers and bitmaps affordable. */
  ramBytesMax: 16 * 1024 * 1024 * MiB,
  /** RAM that `receive` allocates for a guest it does not know, bytes, unless the user says otherwise. */
  receiveRamBytesMax: 64 * 1024 * MiB,
  /** Time in which a connection must be made, ms. */
  connectMs: 10_000,
  /**
   * How long a destination may say nothing and take nothing while the source waits for it, ms. Generous, because the guest
   * is lost with the connection; less where it is recovered, which costs no more than to connect again.
   */
  silenceMs: 120_000,
  silenceRecoverMs: 30_000,
  /** How long a lost connection is waited for, or tried to be made again, ms, unless the user says otherwise. */
  recoverMs: 300_000,
  /** POSTCOPY package, bytes. Device state, not RAM: QEMU's largest seen is under 1 MiB. */
  packageBytesMax: 256 * MiB,
  /** Device sections outside of a package. */
  deviceSectionsMax: 4096,
  /** Payload of one command record, bytes (a u16 on the wire). */
  commandBytesMax: 65_535,
  /** Payload of one return-path message, bytes (QEMU's bound). */
  returnPathBytesMax: 512,
  /** Ranges we put in one POSTCOPY_RAM_DISCARD (QEMU's bound as a sender). */
  discardRangesPerCommand: 12,
  /** Page requests queued at the source before the return path is no longer read. */
  requestQueueMax: 65_536,
  /** Pages in the group that a demanded page brings. */
  aroundPagesMax: 4096,
  /** Largest host page that is assembled in memory, bytes. */
  hostPageBytesMax: 1024 * MiB,
  /** Guest threads whose blocktime is kept; more are served, but counted together. */
  blocktimeThreadsMax: 256,
  /** Pages joined into one placement. */
  placeRunPagesMax: 64,
  /** Receive buffer, bytes. */
  receiveBufferBytes: 1 * MiB,
  /** Header and page pairs in one sendmsg: twice this is the kernel's IOV_MAX. */
  sendPairsMax: 512,
  /** Sidecar of an image, bytes: a checksum for each 64 KiB of 1 TiB. */
  sidecarBytesMax: 256 * MiB,
  /** Pages in a working set: 4 GiB. */
  workingSetPagesMax: 2 ** 20,
  /** File of a working set, bytes: so many pages, and which pages the image has. */
  workingSetBytesMax: 64 * MiB,
  /** A record of what a guest asks for ends when it has asked for nothing new in this time, ms. */
  recordSettleMs: 1000,
  /** Or after this time, ms, unless the user says otherwise. */
  recordMaxMs: 10_000,
  /** Peers whose TLS handshake is under way; one more, and the oldest of them has to go. */
  tlsHandshakesMax: 64,
  /**
   * How long a peer may take to say anything at all once it is connected, ms: enough for a link of 200 ms round trip that loses
   * the first packet. Who is silent is gone within a second.
   */
  tlsFirstByteMs: 900,
  /** How long a TLS handshake that has begun may take, ms. */
  tlsHandshakeMs: 5000,
  /** One file of TLS credentials, bytes. */
  tlsFileBytesMax: 1 * MiB,
  /** One line from a QMP server, bytes: the longest real one (query-qmp-schema) is about 250 KiB. */
  qmpLineBytesMax: 4 * MiB,
  /** Console and error output kept of a QEMU we started, bytes each; older output is dropped. */
  qemuOutputBytesMax: 1 * MiB,
} as const

/** Times, rates and sizes that a user gives, by name. @throws UsageError for the first that cannot be one. */
export function assertAtLeastZero(values: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(values)) {
    if (!Number.isFinite(value) || value < 0)
      throw new UsageError(`${name} must be a number of at least 0, got ${value}`)
  }
}
