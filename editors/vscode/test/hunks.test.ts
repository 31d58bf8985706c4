import assert from 'node:assert/strict';
import { test } from 'node:test';
import { afterAccepting, applied, followed, gaps, grouped, placed, type Edit } from '../src/hunks.ts';

const TEXT = 'one\ntwo\nthree\nfour\nfive\n';

function edit(from: string, to: string): Edit {
  const start = TEXT.indexOf(from);
  return { start, end: start + from.length, text: to };
}

test('edits of one line and of lines that touch are one hunk', () => {
  const edits = [edit('four', '4'), edit('o', 'O'), edit('two', '2')];
  assert.deepEqual(
    grouped(TEXT, edits).map((hunk) => hunk.map(({ text }) => text)),
    [['O', '2'], ['4']],
  );
});

test('accepting hunks in any order ends in the same text as accepting all at once', () => {
  const edits = [edit('one', 'eins\nund'), edit('three', ''), edit('five', 'fünf')];
  const whole = applied(TEXT, edits);
  for (const order of [[0, 0, 0], [2, 1, 0], [1, 0, 0], [1, 1, 0]]) {
    let text = TEXT;
    let hunks = grouped(TEXT, edits);
    assert.equal(hunks.length, 3);
    for (const index of order) {
      text = applied(text, hunks[index] ?? []);
      hunks = afterAccepting(hunks, index);
    }
    assert.deepEqual([text, hunks], [whole, []]);
  }
});

test('an edit is placed where its text stands in the result', () => {
  const edits = [edit('one', 'eleven'), edit('four', 'IV')];
  const text = applied(TEXT, edits);
  assert.deepEqual(placed(edits).map(([start, end]) => text.slice(start, end)), ['eleven', 'IV']);
});

test('what is not settled is noise, whatever order and overlap the ranges have', () => {
  assert.deepEqual(gaps([[6, 8], [0, 2], [1, 3]], 10), [[3, 6], [8, 10]]);
  assert.deepEqual(gaps([[0, 4]], 4), []);
  assert.deepEqual(gaps([], 2), [[0, 2]]);
  assert.deepEqual(gaps([[5, 9]], 3), [[0, 3]]);
});

test('a range goes with the edits before and in it', () => {
  const edits = [edit('one', 'eins'), edit('three', '3'), edit('five', 'fünfzig')];
  const after = applied(TEXT, edits);
  const start = TEXT.indexOf('two');
  const [first, last] = followed([start, TEXT.indexOf('four') + 4], edits);
  assert.equal(after.slice(first, last), 'two\n3\nfour');
  assert.deepEqual(followed([start, start], edits), [first, first]);
});
