// The commands of farfault as a table: what each is for, its options, and the module that does it. Pure; what a
// command needs of the kernel is loaded only when it is run, so that help works anywhere.

import {
  AHEAD_MS,
  AROUND_PAGES,
  GROUPS_LATER,
  LIVE_ORDER_CHOICES,
  ORDER_CHOICES,
  ORDER_NAMES,
  ORDERS,
  type OrderChoice,
  SMALL_REQUESTS,
} from '../order/orders.js'
import type { ExitCode } from './exit-codes.js'
import { GUEST_OPTIONS } from './guest-options.js'
import {
  flag,
  type OperandShape,
  type Operands,
  type OptionTable,
  optional,
  required,
  type Values,
  withDefault,
} from './options.js'
import { TLS_CONNECT_OPTIONS, TLS_LISTEN_OPTIONS, TLS_NOTE } from './tls-options.js'
import { count, duration, durationOrForever, oneOf, size, stallBudget, text } from './values.js'

export interface Command extends OperandShape {
  readonly summary: string
  readonly options: OptionTable
  /** Paragraphs below the options. */
  readonly notes: readonly string[]
  readonly examples: readonly string[]
  run(values: Values<OptionTable> & Operands): Promise<ExitCode>
}

interface CommandRow<T extends OptionTable> extends Omit<Command, 'run' | 'options'> {
  readonly options: T
  load(): Promise<(values: Values<T> & Operands) => Promise<ExitCode>>
}

function command<const T extends OptionTable>({ load, ...row }: CommandRow<T>): Command {
  return { ...row, run: async (values) => (await load())(values as Values<T> & Operands) }
}

const JSON_FLAG = flag('print a report for programs, one JSON document, on standard output')
const HELP = flag('print this help', 'h')
const POSTCOPY = ['now', 'auto', 'never'] as const
const POSTCOPY_HELP =
  'when to switch: now, before RAM is sent; auto, when precopy will not converge; never, RAM first'

const TRANSFER_OPTIONS = {
  'downtime-limit': withDefault('TIME', duration, '25ms', 'precopy ends when the rest takes no longer'),
  'max-bandwidth': withDefault('SIZE', size, '0', 'bytes a second in precopy; 0 is no limit'),
  'max-postcopy-bandwidth': withDefault(
    'SIZE',
    size,
    '0',
    'the same after the switch; pages asked for are never held back',
  ),
} as const

const AROUND = withDefault(
  'COUNT',
  count(1),
  `${AROUND_PAGES}`,
  `pages in the group that a demanded page brings, in the orders around it; a power of two; behind the first ${SMALL_REQUESTS} such pages, ${GROUPS_LATER} times as many`,
)

const AHEAD = withDefault(
  'TIME',
  duration,
  `${AHEAD_MS}ms`,
  'how long what a working set holds goes before the VM runs: with more, a busy one runs later, but then waits less; 0 lets it run at once',
)

/** The table of orders as a paragraph below the options. */
const orderNote = (choices: readonly OrderChoice[], adaptive = ''): string =>
  `Orders of pages: ${choices
    .map((choice) => `${choice}, ${choice === 'adaptive' ? adaptive : ORDERS[choice].summary}`)
    .join('; ')}. A page that is asked for goes before all others in each of them.`

const RECOVER_TIME = withDefault('TIME', duration, '5m', 'how long to try that')

export const DEMO_OPTIONS = {
  postcopy: withDefault('WHEN', oneOf(POSTCOPY), 'now', POSTCOPY_HELP),
  ...GUEST_OPTIONS,
  after: withDefault('TIME', duration, '500ms', 'how long the guest runs before it moves'),
  'run-for': withDefault('TIME', duration, '500ms', 'how long it runs where it has moved to'),
  slow: flag('64 MiB a second at most, to watch the map'),
  ...TRANSFER_OPTIONS,
  json: JSON_FLAG,
  help: HELP,
} as const

export const MIGRATE_OPTIONS = {
  to: required('URI', text, 'where a receiver listens: tcp:HOST:PORT, unix:PATH or fd:N'),
  postcopy: withDefault('WHEN', oneOf(POSTCOPY), 'auto', POSTCOPY_HELP),
  ...GUEST_OPTIONS,
  after: withDefault('TIME', duration, '500ms', 'how long the guest runs before it moves'),
  ...TRANSFER_OPTIONS,
  order: withDefault(
    'NAME',
    oneOf(LIVE_ORDER_CHOICES),
    'adaptive',
    'in which order pages go after the switch',
  ),
  'around-pages': AROUND,
  ...TLS_CONNECT_OPTIONS,
  recover: optional('URI', text, 'when the connection is lost after the switch, reconnect there and go on'),
  'recover-time': RECOVER_TIME,
  keep: flag('after a failure let the guest run on here, until ctrl-C'),
  json: JSON_FLAG,
  help: HELP,
} as const

export const RECEIVE_OPTIONS = {
  listen: required('URI', text, 'tcp:HOST:PORT (port 0: any), unix:PATH or fd:N'),
  guest: withDefault(
    'auto|ram',
    oneOf(['auto', 'ram']),
    'auto',
    'auto takes a guest that farfault can run; ram takes the RAM of any machine, and keeps its devices as bytes',
  ),
  'max-memory': withDefault('SIZE', size, '64G', 'refuse a guest with more RAM'),
  'run-for': withDefault(
    'TIME',
    durationOrForever,
    '2s',
    'how long the guest runs on before it is checked; or forever',
  ),
  ...TLS_LISTEN_OPTIONS,
  preempt: flag(
    "the source is a QEMU that opens a second connection for pages that are asked for (postcopy-preempt); farfault's own does so unasked where a round trip is long",
  ),
  recover: optional(
    'URI',
    text,
    'when the connection is lost after the switch, keep the guest and wait there for its source',
  ),
  'recover-time': RECOVER_TIME,
  serial: optional('FILE', text, 'append what the guest prints to FILE; - is standard error'),
  json: JSON_FLAG,
  help: HELP,
} as const

export const RESUME_OPTIONS = {
  to: optional('URI', text, 'serve a QEMU that waits there already (tcp:, unix:), instead of starting one'),
  detach: flag('return when the VM runs; a process in the background serves its RAM until all is in'),
  'no-push': flag('send only pages that are asked for, for as long as the VM lives'),
  ahead: AHEAD,
  'quiet-time': optional(
    'TIME',
    duration,
    'send other pages only when none has been asked for in this time; by default 10ms, or 50ms where a working set goes first',
  ),
  patience: optional(
    'TIME',
    duration,
    'for a guest that never ceases to ask, wait no longer than this, nor, where each brings its neighbours, for more requests than it has milliseconds; by default 100ms, or 500ms, and however many requests, while it is recorded what it asks for',
  ),
  'stall-budget': optional(
    'TIME/s',
    stallBudget,
    'what the VM may wait for pages, like 50ms/s: other pages then go less often; the report says if it could not be kept',
  ),
  'max-bandwidth': withDefault('SIZE', size, '0', 'bytes a second for pages nobody asked for; 0 is no limit'),
  order: withDefault('NAME', oneOf(ORDER_CHOICES), 'adaptive', 'in which order pages go'),
  'around-pages': AROUND,
  record: flag(
    'add to the working set beside the image which pages the VM asks for; by default when it has none yet, or lacks some of them',
  ),
  'no-record': flag('write no working set; one that is there is used'),
  'working-set': optional(
    'FILE',
    text,
    'for an image that has none yet: that of an earlier image of this VM (the image, or its .workingset.json)',
  ),
  'record-time': withDefault('TIME', duration, '10s', 'a record ends then, if the VM has not settled before'),
  map: flag(
    'map RAM privately from the image where QEMU can (8.1 or newer): nothing is served, no process stays behind',
  ),
  'no-verify': flag('do not compare page data with the checksums of the image'),
  preempt: flag(
    "a second connection for pages that are asked for (QEMU's postcopy-preempt); with --to, where that QEMU expects it; by itself in a QEMU that is started here and knows how",
  ),
  'no-preempt': flag('one connection for all pages'),
  'no-real-time': flag(
    'run as others do: otherwise, until all RAM is in, the kernel is to run before all else (SCHED_FIFO) who brings pages to the VM, where ' +
      'that is allowed: the thread here that sends, and that of a QEMU of the same user on this machine which takes requested pages, if it names its ' +
      'threads (-name debug-threads=on; one that is started here does)',
  ),
  ...TLS_CONNECT_OPTIONS,
  reconnect: flag(
    'when the connection to the VM is lost, let QEMU listen again (migrate-recover), and go on',
  ),
  recover: optional(
    'SOCKET|URI',
    text,
    'the process that served the VM has died: go on with the QEMU that it had started, by its QMP socket, or with one that ' +
      'listens at URI by migrate-recover; with --to: where to reconnect',
  ),
  'recover-time': RECOVER_TIME,
  blocktime: flag('let QEMU measure how long vCPUs wait for pages (query-migrate shows it)'),
  json: JSON_FLAG,
  help: HELP,
} as const

export const PARK_OPTIONS = {
  qmp: optional('SOCKET', text, 'QMP socket (a path) of the running QEMU that is parked'),
  listen: optional(
    'URI',
    text,
    'wait for whoever migrates here: tcp:HOST:PORT (port 0: any), unix:PATH or fd:N; with --qmp: where QEMU connects to',
  ),
  from: optional('FILE', text, 'convert a plain saved stream, as of exec:cat > FILE'),
  native: flag('with --qmp: QEMU writes the image itself (QEMU 9.0 and newer)'),
  replace: flag('take the place of an image of that name; its working set stays, for the next resume'),
  quit: flag('with --qmp: end that QEMU when its state is in the image'),
  'downtime-limit': withDefault(
    'TIME',
    duration,
    '1s',
    'with --qmp: the VM stops when the rest takes no longer',
  ),
  ...TLS_LISTEN_OPTIONS,
  json: JSON_FLAG,
  help: HELP,
} as const

export const INSPECT_OPTIONS = {
  verify: flag('compare page data with the checksums'),
  json: JSON_FLAG,
  help: HELP,
} as const

export const REPLAY_OPTIONS = {
  bandwidth: optional(
    'SIZE',
    size,
    'bytes a second that source, link and destination carry; by default what the last run measured, or else 300M; 0 is no limit',
  ),
  'round-trip': withDefault('TIME', duration, '0', 'what the link adds to the time of a fault'),
  ahead: AHEAD,
  'quiet-time': optional('TIME', duration, 'as for resume'),
  patience: withDefault('TIME', duration, '100ms', 'as for resume'),
  'around-pages': AROUND,
  'working-set': optional(
    'FILE',
    text,
    'what the recorded orders send first; by default the trace itself, which is the best case',
  ),
  json: JSON_FLAG,
  help: HELP,
} as const

export const PROBE_OPTIONS = { json: JSON_FLAG, help: HELP } as const

export const COMMANDS: Readonly<Record<string, Command>> = {
  demo: command({
    summary: 'move a running guest between two processes of this host, and watch its pages arrive',
    options: DEMO_OPTIONS,
    notes: [
      'It starts a receiver and a source as processes of their own, which talk over TCP on the loopback interface. ' +
        'It ends well only if the guest went on without a gap or a repeat and all its RAM was right.',
    ],
    examples: ['farfault demo', 'farfault demo --slow', 'farfault demo --postcopy auto --json'],
    load: async () => (await import('./demo.js')).demo,
  }),
  receive: command({
    summary: 'wait for a guest, run it while its RAM arrives, and check it',
    options: RECEIVE_OPTIONS,
    notes: [
      'ctrl-C while it waits or while RAM comes first (precopy) gives up: the source keeps the guest. After the switch the ' +
        'guest lives here, so the first ctrl-C lets the transfer finish, and only the second destroys the guest.',
      TLS_NOTE,
    ],
    examples: [
      'farfault receive --listen tcp:0.0.0.0:4444 --tls-dir /etc/pki/qemu',
      'farfault receive --listen unix:/tmp/guest.sock --json',
    ],
    load: async () => (await import('./receive.js')).receiveCommand,
  }),
  migrate: command({
    summary: 'boot a guest here and move it to a receiver while it runs',
    options: MIGRATE_OPTIONS,
    notes: [
      'p and enter, or the signal SIGUSR1, switches to postcopy at once.',
      'ctrl-C before the switch cancels: the guest runs on here until the next ctrl-C. After the switch this process ' +
        'holds RAM that the guest still needs: it goes on, and only a second ctrl-C within 5 s abandons the guest.',
      'If the migration fails before the switch, the guest runs on here: that is shown, the guest is stopped, and its RAM is ' +
        'checked; with --keep it runs until ctrl-C.',
      orderNote(LIVE_ORDER_CHOICES, 'linear'),
      TLS_NOTE,
    ],
    examples: [
      'farfault migrate --to tcp:host:4444 --tls-dir /etc/pki/qemu',
      'farfault migrate --to unix:/tmp/guest.sock --postcopy never --guest pattern --rate 2000',
    ],
    load: async () => (await import('./migrate.js')).migrateCommand,
  }),
  resume: command({
    summary: 'bring a parked QEMU virtual machine to life in milliseconds',
    operands: ['IMAGE'],
    program: true,
    options: RESUME_OPTIONS,
    notes: [
      'The program is the QEMU command of the save: the same machine, memory and devices. -incoming defer, a QMP socket and ' +
        '-name debug-threads=on are added. QEMU runs in the foreground; its RAM is served on demand, and the rest behind it.',
      'One image can be resumed many times at once.',
      'The first run notes which pages the VM asks for, until it has asked for nothing new in a second, in IMAGE.workingset.json (the next ' +
        'one, too, if it ended before); ' +
        'later ones send these first, those of the first milliseconds before the VM runs. A run that asks for others adds them. ' +
        'A VM that is parked again asks for the same, nearly all: the file is good for the next image of that name (park --replace), or for ' +
        'one of another name (--working-set), but not for a VM with other RAM. ' +
        'With --record --no-push it is complete, and good for replay.',
      orderNote(
        ORDER_CHOICES,
        'recorded-around where there is a working set, linear while one is recorded, fault-around otherwise',
      ),
      'A QEMU outlives the process that serves its RAM. It runs on until it needs a page that has not come, and waits for it. ' +
        'resume says which command goes on then; that is refused for another image than the one that the VM was resumed from. ' +
        'Given a URI it knows of the VM only the names and sizes of its RAM blocks.',
      'With --to tcp: and --tls-dir that QEMU has its migration parameter tls-creds set (endpoint=server).',
      TLS_NOTE,
    ],
    examples: [
      'farfault resume vm.img -- qemu-system-x86_64 -machine q35 -m 4G -nographic',
      'farfault resume vm.img --detach -- qemu-system-x86_64 -machine q35 -m 4G -display none',
      'farfault resume vm.img --to unix:/run/vm.migrate',
      'farfault resume vm.img --recover /tmp/farfault-qemu-abc123/qmp',
    ],
    load: async () => (await import('./resume.js')).resumeCommand,
  }),
  park: command({
    summary: "put a running QEMU's whole state into an image; the VM stops",
    options: PARK_OPTIONS,
    operands: ['IMAGE'],
    notes: [
      'One of --qmp, --listen and --from says where the VM comes from. It runs while its RAM is written, and stops for the rest. ' +
        'The image has its name only when it is whole and on disk; only then does QEMU hear that it may let go of the VM. ' +
        'After a failure, or ctrl-C, the VM goes on where it was, and nothing is left on disk.',
      'With --listen the source should have the migration capability return-path or postcopy-ram: otherwise it cannot be told ' +
        'of a failure at the very end, such as a full disk.',
      'With --tls-dir the source has its migration parameter tls-creds set (endpoint=client); with --qmp, too.',
      TLS_NOTE,
    ],
    examples: [
      'farfault park vm.img --qmp /run/vm.qmp',
      'farfault park vm.img --qmp /run/vm.qmp --native --quit',
      'farfault park vm.img --qmp /run/vm.qmp --replace',
      'farfault park vm.img --listen unix:/run/park.sock',
      'farfault park vm.img --listen tcp:0.0.0.0:4445 --tls-dir /etc/pki/qemu',
      'farfault park vm.img --from saved-stream',
    ],
    load: async () => (await import('./park.js')).parkCommand,
  }),
  inspect: command({
    summary: 'list what is in an image or a saved stream, and verify its checksums',
    options: INSPECT_OPTIONS,
    operands: ['FILE'],
    notes: [],
    examples: ['farfault inspect vm.img', 'farfault inspect vm.img --verify --json'],
    load: async () => (await import('./inspect.js')).inspectCommand,
  }),
  replay: command({
    summary: 'say what each order of pages would cost a recorded guest, without running it',
    options: REPLAY_OPTIONS,
    operands: ['TRACE'],
    notes: [
      'A trace is a working set with its times, as resume --record writes it: IMAGE.workingset.json, or IMAGE for that. Of a run with --no-push it has ' +
        'every page that the guest touched. The guest of the model touches one page after the other and calculates in between as ' +
        'long as it did then; a page that is there costs nothing, and one that is not what a fault cost then, with --round-trip ' +
        'and what is on the link before it on top.',
      orderNote(ORDER_NAMES),
    ],
    examples: [
      'farfault replay vm.img.workingset.json',
      'farfault replay vm.img.workingset.json --bandwidth 100M --round-trip 20ms --json',
    ],
    load: async () => (await import('./replay.js')).replayCommand,
  }),
  probe: command({
    summary: 'say whether this host can receive a guest by postcopy, and what to change if not',
    options: PROBE_OPTIONS,
    notes: ['The exit status is 0 when it can, and 1 when it cannot.'],
    examples: ['farfault probe', 'farfault probe --json'],
    load: async () => (await import('./probe.js')).probeCommand,
  }),
}
