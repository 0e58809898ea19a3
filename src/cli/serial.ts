// What a guest prints, followed without keeping it all, and whether two halves of it fit together. Pure.
//
// The ROM guest prints one letter after each pass over its RAM: a…z, and round again. So the letters of the source and
// then those of the destination must be one sequence from `a`; a gap or a repeat shows that passes were lost or done twice.

/** Characters kept of the beginning and of the end, for display. */
const KEPT = 24
const LETTER_A = 0x61
const LETTERS = 26

export interface PrintedText {
  readonly characters: number
  readonly head: string
  readonly tail: string
  /** How often a character was not the letter after the one before it. Of no meaning for other guests. */
  readonly breaks: number
}

export interface Printed extends PrintedText {
  add(bytes: Uint8Array): void
  /** The same, as plain data. */
  summary(): PrintedText
}

export function followPrinted(): Printed {
  let characters = 0
  let head = ''
  let tail = ''
  let breaks = 0
  let last = -1
  return {
    get characters() {
      return characters
    },
    get head() {
      return head
    },
    get tail() {
      return tail
    },
    get breaks() {
      return breaks
    },
    add(bytes) {
      for (const byte of bytes) {
        if (last !== -1 && byte !== letterAfter(last)) breaks++
        last = byte
      }
      characters += bytes.length
      const text = Buffer.from(bytes).toString('latin1')
      if (head.length < KEPT) head = (head + text).slice(0, KEPT)
      tail = (tail + text).slice(-KEPT)
    },
    summary: () => ({ characters, head, tail, breaks }),
  }
}

const letterAfter = (code: number): number => LETTER_A + ((code - LETTER_A + 1) % LETTERS)
const letterNumber = (index: number): string => String.fromCharCode(LETTER_A + (index % LETTERS))

export interface Continuity {
  readonly ok: boolean
  readonly detail: string
}

/** What one side says of its guest: its output, and its progress in its own unit. */
export interface GuestTrack {
  readonly machine: string
  readonly progress: number
  readonly printed: PrintedText
}

/** Did the guest go on where it had stopped? `source` is its track up to the stop, `destination` from there. */
export function checkContinuity(source: GuestTrack, destination: GuestTrack): Continuity {
  return source.machine === 'farfault-v86'
    ? checkLetters(source, destination)
    : checkProgress(source, destination)
}

function checkLetters(source: GuestTrack, destination: GuestTrack): Continuity {
  const before = source.printed
  const after = destination.printed
  const expected = letterNumber(before.characters)
  const total = before.characters + after.characters
  const wrong = (detail: string): Continuity => ({ ok: false, detail })
  if (before.characters > 0 && before.head[0] !== 'a')
    return wrong(`the first letter was "${before.head[0]}"`)
  if (before.breaks > 0) return wrong(`the letters before the switch break off ${before.breaks} times`)
  if (after.breaks > 0) return wrong(`the letters after the switch break off ${after.breaks} times`)
  if (after.characters > 0 && after.head[0] !== expected) {
    return wrong(`after the switch came "${after.head[0]}" where "${expected}" was due`)
  }
  // The guest may have been stopped between the end of a pass and its letter.
  if (Math.abs(destination.progress - total) > 1) {
    return wrong(`${total} letters for ${destination.progress} passes`)
  }
  if (after.characters === 0) return { ok: true, detail: 'no letter was due yet after the switch' }
  return { ok: true, detail: `${total} letters in order: no gap, no repeat` }
}

function checkProgress(source: GuestTrack, destination: GuestTrack): Continuity {
  const ok = destination.progress >= source.progress
  const verb = ok ? 'went on' : 'fell back'
  return { ok, detail: `the guest ${verb} from step ${source.progress} to step ${destination.progress}` }
}
