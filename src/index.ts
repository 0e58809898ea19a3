// The public API, and the only barrel.

export { type Incoming, type Received, type ReceiveOptions, receive } from './destination/destination.js'
export { PAGE_STATE } from './destination/page-map.js'
export type { DestinationReport, IncomingStatus } from './destination/report.js'
export {
  CancelledError,
  ChannelError,
  FarfaultError,
  GuestError,
  HostUnsupportedError,
  IllegalTransition,
  ImageError,
  ProtocolError,
  SystemError,
  UsageError,
} from './errors.js'
export type {
  Guest,
  GuestCheck,
  GuestContext,
  GuestModule,
  GuestRamBlock,
  RamBlockShape,
} from './guest/guest.js'
export { type GuestEvents, type GuestHandle, type GuestSpec, startGuest } from './guest/guest-handle.js'
export { type ServedImage, type ServeOptions, serveImage } from './image/serve.js'
export {
  assertHostCanReceive,
  type ProbeCheck,
  type ProbeOptions,
  type ProbeReport,
  probeHost,
} from './os/probe.js'
export type { SourceReport, SourceStatus } from './source/report.js'
export { type MigrateOptions, migrate } from './source/source.js'
export type { Migration } from './source/start-source.js'
export { type Resumed, type ResumeOptions, resume } from './vm/resume.js'
