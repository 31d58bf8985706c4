/**
 * Changes to a text, taken one by one. Offsets are utf-16 units of the text as it is now, which moves on with
 * every hunk that is accepted. Knows nothing of VS Code.
 */

export interface Edit {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

/** Edits that belong together, ascending and apart from one another. Never empty. */
export type Hunk = readonly [Edit, ...Edit[]];

/** Edits on the same line or on lines that touch are one hunk: a user judges lines, not tokens. */
export function grouped(text: string, edits: readonly Edit[]): Hunk[] {
  const hunks: [Edit, ...Edit[]][] = [];
  for (const edit of [...edits].sort((a, b) => a.start - b.start)) {
    const last = hunks.at(-1);
    const previous = last?.at(-1);
    if (last && previous && newlines(text.slice(previous.end, edit.start)) < 2) last.push(edit);
    else hunks.push([edit]);
  }
  return hunks;
}

export function applied(text: string, edits: readonly Edit[]): string {
  const pieces: string[] = [];
  let at = 0;
  for (const edit of edits) {
    pieces.push(text.slice(at, edit.start), edit.text);
    at = edit.end;
  }
  return pieces.join('') + text.slice(at);
}

/** Where each edit's text stands once all edits are applied, as [start, end). */
export function placed(edits: readonly Edit[]): [number, number][] {
  let moved = 0;
  return edits.map((edit) => {
    const start = edit.start + moved;
    moved += edit.text.length - (edit.end - edit.start);
    return [start, start + edit.text.length];
  });
}

/** The other hunks once hunk `index` has been applied to the text. */
export function afterAccepting(hunks: readonly Hunk[], index: number): Hunk[] {
  const taken = hunks[index];
  if (!taken) return [...hunks];
  const moved = growth(taken);
  const shifted = (edit: Edit): Edit => ({ ...edit, start: edit.start + moved, end: edit.end + moved });
  return hunks.flatMap((hunk, i): Hunk[] => {
    if (i === index) return [];
    const [first, ...rest] = hunk;
    return i < index ? [hunk] : [[shifted(first), ...rest.map(shifted)]];
  });
}

/** Where [start, end) is once edits have been applied; one that touches its end belongs to it. A cursor stays one. */
export function followed([start, end]: readonly [number, number], edits: readonly Edit[]): [number, number] {
  const first = start + growth(edits.filter((edit) => edit.end <= start));
  return [first, start === end ? first : end + growth(edits.filter((edit) => edit.start <= end))];
}

/** What is not in `ranges`, of a text of this length; `ranges` may be unordered and overlap. */
export function gaps(ranges: readonly (readonly [number, number])[], length: number): [number, number][] {
  const found: [number, number][] = [];
  let at = 0;
  for (const [start, end] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (start > at) found.push([at, Math.min(start, length)]);
    at = Math.max(at, end);
  }
  if (at < length) found.push([at, length]);
  return found.filter(([start, end]) => start < end);
}

function growth(edits: readonly Edit[]): number {
  return edits.reduce((sum, edit) => sum + edit.text.length - (edit.end - edit.start), 0);
}

function newlines(text: string): number {
  return text.split('\n').length - 1;
}
