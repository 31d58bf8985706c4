/**
 * What stopgap's language server says beyond LSP; `lsp/extensions.py` is the definition, these are its types.
 * Knows nothing of VS Code.
 */
import type { Range, TextEdit } from 'vscode-languageclient/node';
import { NotificationType, RequestType } from 'vscode-languageclient/node';

export type State = 'starting' | 'loading' | 'ready' | 'paused' | 'offline' | 'error';

export interface Status {
  state: State;
  message: string;
  model: string;
  /** Of loading the model, 0..1. */
  fraction: number | null;
  /** Whether the model follows instructions; null while no model is known. */
  instructions: boolean | null;
}

export const ACTIONS = ['hole', 'all', 'function', 'selection', 'instruction', 'repair', 'another'] as const;
export type Action = (typeof ACTIONS)[number];

export interface FillParams {
  action: Action;
  textDocument: { uri: string };
  range: Range;
  instruction?: string;
  seed?: number;
  token?: string;
}

/** An action's result, not applied; the edits are for exactly this version of the document. */
export interface Preview {
  version: number;
  edits: TextEdit[];
  range: Range;
  text: string;
  score: number;
  fill: number;
}

/** There is nothing to show, and why. */
export interface Nothing {
  reason: string;
}

export interface Draft {
  token: string;
  textDocument: { uri: string; version: number };
  range: Range;
  text: string;
  /** Utf-16 ranges of `text` that have stopped changing. */
  settled: [number, number][];
  step: number;
  steps: number;
}

export interface Feedback {
  fill: number;
  language: string;
  characters?: number;
}

export const status = new RequestType<object, Status, void>('stopgap/status');
export const pause = new RequestType<object, Status, void>('stopgap/pause');
export const resume = new RequestType<object, Status, void>('stopgap/resume');
export const why = new RequestType<{ last?: number }, { lines: string[] }, void>('stopgap/why');
export const fill = new RequestType<FillParams, Preview | Nothing, void>('stopgap/fill');
export const input = new RequestType<{ prompt: string }, string | null, void>('stopgap/input');

export const statusChanged = new NotificationType<Status>('stopgap/status');
export const draft = new NotificationType<Draft>('stopgap/draft');
export const didShow = new NotificationType<Feedback>('stopgap/didShow');
export const didAccept = new NotificationType<Feedback>('stopgap/didAccept');
export const didAcceptPartially = new NotificationType<Feedback>('stopgap/didAcceptPartially');
export const didReject = new NotificationType<Feedback>('stopgap/didReject');
