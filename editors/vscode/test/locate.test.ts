import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import * as path from 'node:path';
import { after, test } from 'node:test';
import { locate, places, type Where } from '../src/locate.ts';

const root = await mkdtemp(path.join(tmpdir(), 'locate-'));
after(() => rm(root, { recursive: true }));

async function program(...parts: string[]): Promise<string> {
  const file = path.join(root, ...parts);
  await mkdir(path.dirname(file), { recursive: true });
  await writeFile(file, '#!/bin/sh\n');
  await chmod(file, 0o755);
  return file;
}

function where(given: Partial<Where>): Where {
  return { setting: '', folders: [], env: {}, home: path.join(root, 'home'), windows: false, ...given };
}

test('the environment of the workspace comes before the PATH', async () => {
  const mine = await program('work', '.venv', 'bin', 'stopgap');
  const other = await program('bin', 'stopgap');
  const env = { PATH: `relative:${path.dirname(other)}` };
  assert.equal((await locate(where({ folders: [path.join(root, 'work')], env }))).command, mine);
  assert.equal((await locate(where({ env }))).command, other);
});

test('a setting wins, and where it names nothing no other program is taken', async () => {
  const other = await program('bin', 'stopgap');
  const env = { PATH: path.dirname(other) };
  const named = await program('home', 'tools', 'stopgap');
  assert.equal((await locate(where({ setting: '~/tools/stopgap', env }))).command, named);
  const gone = path.join(root, 'gone');
  assert.deepEqual(await locate(where({ setting: gone, env })), { command: undefined, looked: [gone] });
});

test('the workspace folder is filled into the setting', () => {
  const found = places(where({ setting: '${workspaceFolder}/env/stopgap', folders: ['/a', '/b'] }));
  assert.deepEqual(found, ['/a/env/stopgap', '/b/env/stopgap']);
});

test('a folder and a file that cannot be run are no program', async () => {
  await mkdir(path.join(root, 'odd', 'stopgap'), { recursive: true });
  await mkdir(path.join(root, 'plain'), { recursive: true });
  await writeFile(path.join(root, 'plain', 'stopgap'), '');
  const env = { PATH: [path.join(root, 'odd'), path.join(root, 'plain')].join(path.delimiter) };
  const found = await locate(where({ env, home: path.join(root, 'nobody') }));
  assert.ok(!found.command?.startsWith(root), found.command ?? '');
});
