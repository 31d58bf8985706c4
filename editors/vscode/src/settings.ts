/** The user's settings: those for the server, and the commands that change them. */
import * as vscode from 'vscode';

const SECTION = 'stopgap';

/** Of documents that the server is told of; previews, logs and the like have other schemes. */
export const SCHEMES = ['file', 'untitled', 'vscode-notebook-cell'] as const;

/** Settings that the server knows by the same name; `lsp/settings.py` says what they mean. */
export const FOR_SERVER = [
  'enabled',
  'automatic',
  'disabledLanguages',
  'disabledGlobs',
  'respectGitignore',
  'inComments',
  'inStrings',
  'showThreshold',
  'candidates',
  'budgetMs',
  'invokedBudgetMs',
  'rewriteBudgetMs',
  'prepareNext',
  'completion',
  'contextFiles',
  'contextBytes',
  'contextMs',
  'allowUnchecked',
] as const;

/** What the server is told: the user's settings, and what this client understands. */
export function forServer(): Record<string, unknown> {
  const settings = vscode.workspace.getConfiguration(SECTION);
  const told: Record<string, unknown> = { status: true, drafts: true, input: true };
  for (const name of FOR_SERVER) told[name] = settings.get(name);
  return told;
}

export function pathSetting(): string {
  return vscode.workspace.getConfiguration(SECTION).get<string>('path', '');
}

export function enabled(): boolean {
  return vscode.workspace.getConfiguration(SECTION).get<boolean>('enabled', true);
}

export function disabledLanguages(): readonly string[] {
  return vscode.workspace.getConfiguration(SECTION).get<string[]>('disabledLanguages', []);
}

/** The language of the file in front, or undefined where there is none. */
export function languageHere(): string | undefined {
  const document = vscode.window.activeTextEditor?.document;
  return SCHEMES.some((scheme) => scheme === document?.uri.scheme) ? document?.languageId : undefined;
}

export async function toggleEverywhere(): Promise<void> {
  const settings = vscode.workspace.getConfiguration(SECTION);
  const now = settings.inspect<boolean>('enabled');
  const next = !(now?.globalValue ?? true);
  await settings.update('enabled', next, vscode.ConfigurationTarget.Global);
  if (now?.workspaceValue !== undefined && now.workspaceValue !== next) {
    const keeps = now.workspaceValue ? 'on' : 'off';
    void vscode.window.showInformationMessage(`stopgap: this workspace keeps ghost text ${keeps} by a setting of its own`);
  }
}

export async function toggleInWorkspace(): Promise<void> {
  if (!vscode.workspace.workspaceFolders?.length) {
    void vscode.window.showInformationMessage('stopgap: no folder is open');
    return;
  }
  await vscode.workspace
    .getConfiguration(SECTION)
    .update('enabled', !enabled(), vscode.ConfigurationTarget.Workspace);
}

export async function toggleLanguage(): Promise<void> {
  const language = languageHere();
  if (!language) {
    void vscode.window.showInformationMessage('stopgap: open a file first');
    return;
  }
  const off = disabledLanguages();
  const next = off.includes(language) ? off.filter((one) => one !== language) : [...off, language];
  const settings = vscode.workspace.getConfiguration(SECTION);
  // Where the list is set already: a workspace's list hides the user's own.
  const target =
    settings.inspect('disabledLanguages')?.workspaceValue === undefined
      ? vscode.ConfigurationTarget.Global
      : vscode.ConfigurationTarget.Workspace;
  await settings.update('disabledLanguages', next, target);
}
