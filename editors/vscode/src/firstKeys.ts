/**
 * Ghost text for the first keys of a window, about which VS Code asks nobody.
 *
 * What asks is a part of an editor that VS Code makes when it is idle or 5 s have passed (an editor contribution
 * instantiated "eventually"), and it asks only those who are there. Keys typed before that, or before the language
 * server runs, would be answered at the next key only. Ends with the window's first request.
 */
import * as vscode from 'vscode';
import type { Server } from './server.ts';

/** VS Code asks within its own delay of 50 ms where it asks at all. */
const UNANSWERED_AFTER_MS = 300;

export class FirstKeys implements vscode.Disposable {
  private readonly server: Server;
  private typed: { document: vscode.TextDocument; version: number; line: number } | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly listeners: vscode.Disposable[];

  constructor(server: Server) {
    this.server = server;
    this.listeners = [
      vscode.workspace.onDidChangeTextDocument(({ document, contentChanges, reason }) => {
        if (document !== vscode.window.activeTextEditor?.document || !contentChanges.length) return;
        const [change, more] = contentChanges;
        const typing = reason === undefined && more === undefined && !!change?.text;
        const line = change ? change.range.start.line : 0;
        this.typed = typing ? { document, version: document.version, line } : undefined;
        this.wait();
      }),
      server.onDidChange(() => this.timer === undefined && this.wait()),
    ];
  }

  /** VS Code has asked: from now on it does so by itself. */
  dispose(): void {
    clearTimeout(this.timer);
    this.typed = undefined;
    vscode.Disposable.from(...this.listeners.splice(0)).dispose();
  }

  private wait(): void {
    clearTimeout(this.timer);
    this.timer = this.typed && setTimeout(() => this.ask(), UNANSWERED_AFTER_MS);
  }

  private ask(): void {
    this.timer = undefined;
    const typed = this.typed;
    const editor = vscode.window.activeTextEditor;
    if (!typed || !editor || !this.server.isRunning) return; // `onDidChange` comes when it runs
    this.typed = undefined;
    const still = editor.document === typed.document && typed.document.version === typed.version;
    if (!still || !editor.selection.isEmpty || editor.selection.active.line !== typed.line) return;
    if (!vscode.workspace.getConfiguration('editor', typed.document).get('inlineSuggest.enabled')) return;
    // Not explicit: the rules for staying quiet hold as they do after every key.
    void vscode.commands.executeCommand('editor.action.inlineSuggest.trigger', { explicit: false });
  }
}
