// Unmodified QEMUs with their own tls-creds objects are the peers: as the source of `receive` and `park`, and as the
// destination that an image is served to. With certificates and with pre-shared keys; right ones and wrong ones.

import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { convertStream } from '../../src/image/convert.js'
import { openImage } from '../../src/image/image.js'
import { GuestError, park, serveImage, TlsError } from '../../src/index.js'
import { viewOf } from '../../src/os/mapping.js'
import type { Qemu } from '../../src/qemu/launch.js'
import { queryMigration, waitForMigration } from '../../src/qemu/migration.js'
import { ramOf, save, temporaryDirectory } from '../image/images.js'
import { assertNoImage, assertSound, startVm } from '../park/vms.js'
import { findQemu, skipReason } from '../qemu/find.js'
import { pmemsave, startTestGuest, type TestGuestOptions } from '../qemu/guests.js'
import { issue, makeAuthority, writeKeys } from './certificates.js'
import { freePort, type Listening, listenOverTls } from './listening.js'

const MiB = 1024 * 1024
const RAM_MIB = 64
const MACHINE = 'pc-i440fx-7.2'

const root = temporaryDirectory({ after } as never)
const at = (name: string): string => join(root, name)
const ca = makeAuthority(at('ca'))
const certificates = issue(ca, at('certificates'), ['client', 'server'])
const bare = issue(ca, at('bare'), [])
const stranger = issue(makeAuthority(at('other-ca')), at('stranger'), ['client', 'server'])
const elsewhere = issue(ca, at('elsewhere'), ['client', 'server'], { names: 'DNS:elsewhere.example' })
const keys = writeKeys(at('keys'), { qemu: '00112233445566778899aabbccddeeff', other: 'aabbccdd' })
const otherKeys = writeKeys(at('other-keys'), { qemu: 'ff112233445566778899aabbccddeeff' })

type Endpoint = 'client' | 'server'
const x509 = (endpoint: Endpoint, directory = certificates): string[] => [
  '-object',
  `tls-creds-x509,id=tls0,dir=${directory},endpoint=${endpoint},verify-peer=on`,
]
const psk = (endpoint: Endpoint, directory = keys, more = ''): string[] => [
  '-object',
  `tls-creds-psk,id=tls0,dir=${directory},endpoint=${endpoint}${more}`,
]
const KINDS = [
  { kind: 'certificates', directory: certificates, object: x509 },
  { kind: 'pre-shared keys', directory: keys, object: psk },
] as const

async function startQemu(t: TestContext, version: string, options: TestGuestOptions): Promise<Qemu> {
  const qemu = await startTestGuest(findQemu(version)!, {
    guest: 'rom',
    ramMiB: RAM_MIB,
    machine: MACHINE,
    ...options,
  })
  t.after(qemu.kill)
  return qemu
}

const encrypt = (qemu: Qemu, creds = 'tls0'): Promise<unknown> =>
  qemu.qmp.execute('migrate-set-parameters', { 'tls-creds': creds })

/** By postcopy, at once; all of RAM is compared, from 1 MiB up. */
async function assertMoves(qemu: Qemu, { incoming }: Listening): Promise<void> {
  await qemu.qmp.execute('migrate', { uri: incoming.uri })
  await qemu.qmp.execute('migrate-start-postcopy')
  const { report, guest } = await incoming.done
  assert.equal(report.error, undefined)
  await waitForMigration(qemu.qmp, ['completed'], { timeoutMs: 20_000 })
  await guest!.stop()
  const block = guest!.blocks.find(({ name }) => name === 'pc.ram')!
  const ram = Buffer.from(viewOf(block.address, block.length))
  const pmem = await pmemsave(qemu, 0, RAM_MIB * MiB)
  assert.equal(ram.compare(pmem, MiB, pmem.length, MiB, pmem.length), 0, 'RAM differs')
  await guest!.destroy()
}

/** QEMU's migration fails, soon, and its guest runs on. */
async function assertFails(qemu: Qemu, { incoming: { uri }, refused }: Listening): Promise<void> {
  const before = refused.length
  await qemu.qmp.execute('migrate', { uri })
  await waitForMigration(qemu.qmp, ['failed'], { timeoutMs: 10_000 })
  for (let i = 0; (await statusOf(qemu)) !== 'running' && i < 100; i++) await sleep(20)
  assert.equal(await statusOf(qemu), 'running')
  for (let i = 0; refused.length === before && i < 100; i++) await sleep(20)
  assert.equal(refused.length, before + 1)
}

/** The same with each of these objects, one after the other; nothing is taken. Answers why each was refused. */
async function assertAllFail(qemu: Qemu, listening: Listening, ids: readonly string[]): Promise<string[]> {
  for (const id of ids) {
    await encrypt(qemu, id)
    await assertFails(qemu, listening)
  }
  assert.equal(listening.incoming.stats.bytes, 0)
  return listening.refused.map(({ reason }) => reason)
}

const statusOf = async (qemu: Qemu): Promise<string> =>
  (await qemu.qmp.execute<{ status: string }>('query-status')).status

let parked: Promise<string> | undefined

/** A stopped guest in an image, made once. */
function parkedImage(): Promise<string> {
  parked ??= (async () => {
    const path = at('vm.img')
    const source = await startTestGuest(findQemu('7.2')!, { guest: 'rom', ramMiB: RAM_MIB, machine: MACHINE })
    await source.waitForOutput(/d/)
    await source.qmp.execute('stop')
    await save(source, `exec:cat > ${path}.stream`)
    await source.kill()
    await convertStream(`${path}.stream`, path)
    return path
  })()
  return parked
}

const limits = (...qemus: string[]) => ({ skip: skipReason({ qemus }), timeout: 180_000 })

for (const version of ['7.2', '10.0']) {
  for (const { kind, directory, object } of KINDS) {
    test(`QEMU ${version} migrates here by postcopy, with ${kind}`, limits(version), async (t) => {
      const qemu = await startQemu(t, version, { args: object('client') })
      await qemu.waitForOutput(/d/)
      await encrypt(qemu)
      const receiving = listenOverTls(t, directory, 'ram')
      await assertMoves(qemu, receiving)
      assert.deepEqual(receiving.refused, [])
    })

    for (const preempt of [false, true]) {
      const how = preempt ? `${kind}, on two connections` : kind
      test(`a VM is served to QEMU ${version}, with ${how}`, limits('7.2', version), async (t) => {
        const image = await parkedImage()
        const capabilities = ['events', 'postcopy-ram', ...(preempt ? ['postcopy-preempt'] : [])]
        const args = object('server')
        const qemu = await startQemu(t, version, { args, incoming: true, paused: true, capabilities })
        await encrypt(qemu)
        const uri = `tcp:127.0.0.1:${await freePort()}`
        await qemu.qmp.execute('migrate-incoming', { uri })
        const { source } = serveImage(image, { tls: { directory }, preempt })
        source.connect(uri)
        const report = await source.done
        assert.ok(report.ok, report.error)
        await waitForMigration(qemu.qmp, ['completed'])
        const opened = openImage(image)
        const stored = ramOf(opened, 'pc.ram')
        opened.close()
        const pmem = await pmemsave(qemu, 0, RAM_MIB * MiB)
        assert.equal(pmem.compare(stored, MiB, pmem.length, MiB, pmem.length), 0, 'RAM differs')
        await qemu.qmp.execute('cont')
        await qemu.waitForOutput(/[a-z]/, { timeoutMs: 30_000 })
      })
    }
  }

  test(
    `QEMU ${version}: wrong ones are refused, and then the right one is taken`,
    limits(version),
    async (t) => {
      const args = [
        ...[...x509('client', stranger), ...x509('client', bare), ...x509('client')].map((word, i) =>
          word.replace('id=tls0', `id=tls${i >> 1}`),
        ),
      ]
      const qemu = await startQemu(t, version, { args })
      const receiving = listenOverTls(t, certificates, 'ram')
      await assertFails(qemu, receiving)
      const reasons = await assertAllFail(qemu, receiving, ['tls0', 'tls1'])
      // With certificates of another CA QEMU does not even show its own: it does not believe ours.
      assert.deepEqual(reasons, ['plain-text', reasonOf(receiving.refused[1]), 'no-certificate'])
      await encrypt(qemu, 'tls2')
      await assertMoves(qemu, receiving)
    },
  )

  test(`QEMU ${version}: a wrong key and an unknown user are refused`, limits(version), async (t) => {
    const args = [
      ...psk('client', otherKeys),
      ...psk('client', keys, ',username=other').map((word) => word.replace('id=tls0', 'id=tls1')),
    ]
    const qemu = await startQemu(t, version, { args })
    const onlyQemu = writeKeys(at(`only-qemu-${version}`), { qemu: '00112233445566778899aabbccddeeff' })
    const receiving = listenOverTls(t, onlyQemu, 'ram')
    const reasons = await assertAllFail(qemu, receiving, ['tls0', 'tls1'])
    assert.deepEqual(reasons, ['wrong-key', 'unknown-user'])
  })

  for (const [name, object, directory, reason, hostname] of [
    ['a certificate of another CA', x509('server', stranger), certificates, 'untrusted', undefined],
    ['a certificate for another host', x509('server', elsewhere), certificates, 'hostname', undefined],
    [
      'a certificate for another host, which is meant',
      x509('server', elsewhere),
      certificates,
      undefined,
      'elsewhere.example',
    ],
    ['no use for a client without certificate', x509('server'), bare, 'refused', undefined],
    ['another key', psk('server', otherKeys), keys, 'closed', undefined],
    ['no TLS', [], certificates, 'closed', undefined],
  ] as const) {
    test(`QEMU ${version} has ${name}`, limits('7.2', version), async (t) => {
      const image = await parkedImage()
      const qemu = await startQemu(t, version, { args: object, incoming: true, paused: true })
      if (object.length > 0) await encrypt(qemu)
      const uri = `tcp:127.0.0.1:${await freePort()}`
      await qemu.qmp.execute('migrate-incoming', { uri })
      const { source } = serveImage(image, {
        tls: { directory, ...(hostname === undefined ? {} : { hostname }) },
        setupTimeoutMs: 5000,
      })
      source.connect(uri)
      const report = await source.done
      if (reason === undefined) return assert.ok(report.ok, report.error)
      assert.equal(report.ok, false)
      assert.ok(report.cause instanceof TlsError, String(report.cause?.stack))
      assert.equal(report.cause.reason, reason, report.error)
      assert.notEqual((await queryMigration(qemu.qmp).catch(() => ({ status: 'gone' }))).status, 'completed')
    })
  }

  test(`QEMU ${version} is parked over TLS`, limits(version), async (t) => {
    const vm = await startVm(t, version, { guest: 'rom', ramMiB: 32, args: x509('client') })
    const options = {
      qmp: vm.qmp,
      path: vm.image,
      listen: 'tcp:127.0.0.1:0',
      tls: { directory: certificates },
    }
    await assert.rejects(
      park(options),
      (error) => error instanceof GuestError && /tls-creds/.test(error.message),
    )
    assertNoImage(vm)
    await encrypt(vm.qemu)
    await assert.rejects(park({ qmp: vm.qmp, path: vm.image }), /encrypts its migrations/)
    const report = await park(options)
    assert.ok(report.ok)
    assertSound(vm.image)
  })
}

/** Which of the two comes first is QEMU's choice: our certificate is as wrong for it as its is for us. */
function reasonOf(error: TlsError | undefined): string {
  assert.ok(
    ['untrusted', 'no-certificate', 'closed', 'refused'].includes(error?.reason ?? ''),
    error?.message,
  )
  return error!.reason
}
