/** The server's code actions, with the live preview in place of an edit that appears at once. */
import * as vscode from 'vscode';
import type { Middleware } from 'vscode-languageclient/node';
import { ACTIONS, type Action } from './protocol.ts';

/** What the user has asked for; `instruction` is undefined while it has to be asked for. */
export interface Ask {
  action: Action;
  uri: vscode.Uri;
  range: vscode.Range;
  instruction?: string;
}

/** Filling a hole and repairing a line are small and undone with one key: they need no preview. */
const PREVIEWED: ReadonlySet<Action> = new Set<Action>(['function', 'selection', 'instruction', 'another', 'all']);

export const PREVIEW = 'stopgap.preview';

export const provideCodeActions: NonNullable<Middleware['provideCodeActions']> = async (
  document,
  range,
  context,
  token,
  next,
) => {
  const found = await next(document, range, context, token);
  return found?.map((action) => (action instanceof vscode.CodeAction ? previewed(action) : action));
};

function previewed(action: vscode.CodeAction): vscode.CodeAction {
  const data = (action as { data?: unknown }).data ?? action.command?.arguments?.[0];
  const ask = readChoice(data);
  if (!ask || action.disabled || !PREVIEWED.has(ask.action)) return action;
  const shown = new vscode.CodeAction(action.title, action.kind);
  // The server's own plain data: a Range among the arguments arrives as something else.
  shown.command = { title: action.title, command: PREVIEW, arguments: [data] };
  return shown;
}

/** `Choice.as_data` of lsp/rewrite.py. */
export function readChoice(data: unknown): Ask | undefined {
  if (typeof data !== 'object' || data === null) return undefined;
  const { stopgap, uri, range, instruction } = data as Record<string, unknown>;
  const action = ACTIONS.find((one) => one === stopgap);
  if (!action || typeof uri !== 'string' || !Array.isArray(range) || range.length !== 4) return undefined;
  const [a, b, c, d] = range.map(Number) as [number, number, number, number];
  const ask: Ask = { action, uri: vscode.Uri.parse(uri), range: new vscode.Range(a, b, c, d) };
  if (typeof instruction === 'string' && instruction) ask.instruction = instruction;
  return ask;
}

/** What a command means at the cursor, or undefined without an editor. */
export function askHere(action: Action): Ask | undefined {
  const editor = vscode.window.activeTextEditor;
  if (!editor) return undefined;
  const chosen = action === 'function' && !editor.selection.isEmpty ? 'selection' : action;
  return { action: chosen, uri: editor.document.uri, range: editor.selection };
}
