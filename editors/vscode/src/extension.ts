/** Where everything is put together; every command is registered here. */
import * as vscode from 'vscode';
import type { Middleware } from 'vscode-languageclient/node';
import { askHere, PREVIEW, provideCodeActions, readChoice, type Ask } from './actions.ts';
import { FirstKeys } from './firstKeys.ts';
import { Previews } from './preview.ts';
import { Reasons } from './reasons.ts';
import { Server } from './server.ts';
import * as settings from './settings.ts';
import { menu, StatusItem } from './status.ts';

let server: Server | undefined;

export function activate(context: vscode.ExtensionContext): void {
  const log = vscode.window.createOutputChannel('stopgap', { log: true });
  const middleware: Middleware = {
    provideCodeActions,
    provideInlineCompletionItems: (document, position, given, token, next) => {
      firstKeys.dispose();
      return here.thinking(Promise.resolve(next(document, position, given, token)));
    },
  };
  const here = (server = new Server(log, middleware));
  const firstKeys = new FirstKeys(here);
  const status = new StatusItem(here);
  const previews = new Previews(here, (step) => status.progress(step));
  const reasons = new Reasons();

  const on = (command: string, run: (...given: never[]) => unknown): vscode.Disposable =>
    vscode.commands.registerCommand(command, run);
  context.subscriptions.push(
    log,
    firstKeys,
    status,
    previews,
    reasons,
    on('stopgap.menu', () => menu(here)),
    on('stopgap.toggle', settings.toggleEverywhere),
    on('stopgap.toggleWorkspace', settings.toggleInWorkspace),
    on('stopgap.toggleLanguage', settings.toggleLanguage),
    on('stopgap.pauseModel', () => here.pause(true)),
    on('stopgap.resumeModel', () => here.pause(false)),
    on('stopgap.restart', () => here.restart()),
    on('stopgap.showLog', () => log.show()),
    on('stopgap.welcome', async () => {
      await vscode.commands.executeCommand('workbench.action.openWalkthrough', `${context.extension.id}#start`);
      // A context that was set before VS Code read the walkthrough never ticks a step.
      await vscode.commands.executeCommand('setContext', 'stopgap.found', here.isRunning);
    }),
    on('stopgap.whyNothing', () => reasons.show(here)),
    on('stopgap.fillHole', () => preview(previews, askHere('hole'))),
    on('stopgap.rewriteFunction', () => preview(previews, askHere('function'))),
    on('stopgap.rewriteWithInstruction', () => preview(previews, askHere('instruction'))),
    on(PREVIEW, (choice: unknown) => preview(previews, readChoice(choice))),
    on('stopgap.accept', () => previews.accept()),
    on('stopgap.reject', () => previews.reject()),
    on('stopgap.tryAgain', () => previews.tryAgain()),
    on('stopgap.acceptHunk', (index: number) => previews.acceptHunk(index)),
    on('stopgap.skipHunk', (index: number) => previews.skipHunk(index)),
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (event.affectsConfiguration('stopgap.path')) void here.restart();
      else if (event.affectsConfiguration('stopgap')) here.settingsChanged();
    }),
    vscode.workspace.onDidGrantWorkspaceTrust(() => void here.restart()),
  );
  // Not awaited: an extension counts as slow until this function returns.
  void here.restart();
}

export function deactivate(): Promise<void> | undefined {
  return server?.dispose();
}

async function preview(previews: Previews, ask: Ask | undefined): Promise<void> {
  if (ask) await previews.start(ask);
  else void vscode.window.showInformationMessage('stopgap: open a file first');
}
