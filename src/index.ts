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
  TlsError,
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
export { type ConvertOptions, convertStream } from './image/convert.js'
export type { DemandOptions, DemandReport } from './image/demand.js'
export {
  type InspectedBlock,
  type InspectedSection,
  type InspectedWorkingSet,
  type InspectOptions,
  type InspectReport,
  inspectFile,
} from './image/inspect.js'
export { type Parking, type ParkOptions, parkFrom } from './image/park.js'
export type { ParkReport } from './image/park-report.js'
export { type ServedImage, type ServeOptions, serveImage } from './image/serve.js'
export type { WrittenImage } from './image/writer.js'
export { type LiveOrderChoice, ORDERS, type OrderChoice, type OrderName } from './order/orders.js'
export {
  assertHostCanReceive,
  type ProbeCheck,
  type ProbeOptions,
  type ProbeReport,
  probeHost,
} from './os/probe.js'
export { type ReplayOptions, type ReplayReport, replayTrace } from './replay/replay.js'
export type { SourceReport, SourceStatus } from './source/report.js'
export { type MigrateOptions, migrate } from './source/source.js'
export type { Migration } from './source/start-source.js'
export type { TlsConnectOptions, TlsListenOptions, TlsOptions } from './tls/tunnel.js'
export { type ParkedVm, type ParkProgress, type ParkVmOptions, park } from './vm/park.js'
export { type Recovered, type RecoverOptions, recover } from './vm/recover.js'
export { type Resumed, type ResumeOptions, resume } from './vm/resume.js'
