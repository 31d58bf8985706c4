/** Where the `stopgap` program is. Knows nothing of VS Code; everything it looks at is passed in. */
import { constants } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import * as path from 'node:path';

export interface Where {
  /** The setting `stopgap.path`, empty if unset. */
  setting: string;
  /** Workspace folders; empty in a workspace that is not trusted, whose programs must not run. */
  folders: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  home: string;
  windows: boolean;
}

/** `command` is an absolute path, or undefined with the places that were looked at. */
export interface Found {
  command: string | undefined;
  looked: string[];
}

/**
 * A setting that names no program is not papered over by another one found elsewhere: the user has said which.
 */
export async function locate(where: Where): Promise<Found> {
  const looked: string[] = [];
  for (const place of places(where)) {
    looked.push(place);
    if (await isProgram(place)) return { command: place, looked };
  }
  return { command: undefined, looked };
}

export function places(where: Where): string[] {
  const { setting, folders, env, home, windows } = where;
  if (setting.trim()) {
    const given = setting.trim().replace(/^~(?=$|[\\/])/, home);
    if (!given.includes('${workspaceFolder}')) return [path.resolve(folders[0] ?? home, given)];
    return folders.map((folder) => path.resolve(given.replaceAll('${workspaceFolder}', folder)));
  }
  const [bin, name] = windows ? ['Scripts', 'stopgap.exe'] : ['bin', 'stopgap'];
  const environments = folders.flatMap((folder) => ['.venv', 'venv', 'env'].map((venv) => path.join(folder, venv)));
  if (env['VIRTUAL_ENV']) environments.push(env['VIRTUAL_ENV']);
  const onPath = (env['PATH'] ?? env['Path'] ?? '').split(path.delimiter).filter(path.isAbsolute);
  // Editors started from a desktop often lack the shell's PATH; pipx and uv install programs here.
  const usual = windows ? [] : [path.join(home, '.local', 'bin'), '/opt/homebrew/bin', '/usr/local/bin'];
  const all = [...environments.map((venv) => path.join(venv, bin)), ...onPath, ...usual];
  return [...new Set(all)].map((folder) => path.join(folder, name));
}

async function isProgram(file: string): Promise<boolean> {
  try {
    await access(file, constants.X_OK);
    return (await stat(file)).isFile();
  } catch {
    return false;
  }
}
