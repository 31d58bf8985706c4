/** The one language server of this window: found, started, restarted, asked. */
import { homedir } from 'node:os';
import * as vscode from 'vscode';
import type { LanguageClientOptions, Middleware, NotificationType } from 'vscode-languageclient/node';
import { DidChangeConfigurationNotification, LanguageClient, State } from 'vscode-languageclient/node';
import { locate } from './locate.ts';
import * as protocol from './protocol.ts';
import { forServer, pathSetting, SCHEMES } from './settings.ts';

export type Health =
  | { state: 'stopped'; message: string }
  | { state: 'missing'; message: string; looked: string[] }
  | protocol.Status;

const INSTALL = 'pipx install .';

export class Server implements vscode.Disposable {
  health: Health = { state: 'stopped', message: 'not started yet' };
  /** Requests for ghost text and rewrites under way. */
  busy = 0;
  private client: LanguageClient | undefined;
  private queue: Promise<void> = Promise.resolve();
  private readonly changes = new vscode.EventEmitter<void>();
  private readonly drafts = new vscode.EventEmitter<protocol.Draft>();
  readonly onDidChange = this.changes.event;
  readonly onDraft = this.drafts.event;
  readonly log: vscode.LogOutputChannel;
  private readonly middleware: Middleware;

  constructor(log: vscode.LogOutputChannel, middleware: Middleware) {
    this.log = log;
    this.middleware = middleware;
  }

  get isRunning(): boolean {
    return this.client?.state === State.Running;
  }

  /** Starts, stops and restarts happen one after the other, however fast they are asked for. */
  restart(): Promise<void> {
    this.queue = this.queue.then(async () => {
      await this.end();
      await this.begin();
    });
    return this.queue;
  }

  settingsChanged(): void {
    void this.client?.sendNotification(DidChangeConfigurationNotification.type, { settings: { stopgap: forServer() } });
  }

  /** The running client, or undefined after the user has been told what is wrong. */
  running(): LanguageClient | undefined {
    if (this.isRunning) return this.client;
    if (this.health.state === 'missing') void tellMissing(this.health.looked);
    else void vscode.window.showWarningMessage('stopgap: the language server is not running (Stopgap: Show Log says why)');
    return undefined;
  }

  async thinking<T>(work: Promise<T>): Promise<T> {
    this.busy += 1;
    this.changes.fire();
    try {
      return await work;
    } finally {
      this.busy -= 1;
      this.changes.fire();
    }
  }

  notify(type: NotificationType<protocol.Feedback>, params: protocol.Feedback): void {
    void this.client?.sendNotification(type, params).catch(() => undefined);
  }

  /** Whether words can lead a rewrite, as far as the daemon knows. */
  async followsInstructions(): Promise<boolean> {
    const status = await this.client?.sendRequest(protocol.status, {}).catch(() => undefined);
    return status?.instructions !== false;
  }

  async pause(wanted: boolean): Promise<void> {
    const client = this.running();
    if (client) this.become(await client.sendRequest(wanted ? protocol.pause : protocol.resume, {}));
  }

  dispose(): Promise<void> {
    return this.end();
  }

  private async begin(): Promise<void> {
    const trusted = vscode.workspace.isTrusted;
    const folders = trusted ? (vscode.workspace.workspaceFolders ?? []).map((folder) => folder.uri.fsPath) : [];
    const found = await locate({
      setting: pathSetting(),
      folders,
      env: process.env,
      home: homedir(),
      windows: process.platform === 'win32',
    });
    if (!found.command) {
      this.become({ state: 'missing', message: 'the stopgap program was not found', looked: found.looked });
      this.log.warn(`no stopgap program at ${found.looked.join(', ')}`);
      void tellMissing(found.looked);
      return;
    }
    this.log.info(`starting ${found.command} lsp`);
    this.become({ state: 'stopped', message: 'starting' });
    const client = new LanguageClient('stopgap', 'stopgap', { command: found.command, args: ['lsp'] }, this.options());
    this.client = client;
    client.onNotification(protocol.statusChanged, (status) => this.become(status));
    client.onNotification(protocol.draft, (draft) => this.drafts.fire(draft));
    client.onRequest(protocol.input, async ({ prompt }) => (await vscode.window.showInputBox({ prompt })) ?? null);
    client.onDidChangeState(({ newState }) => {
      void vscode.commands.executeCommand('setContext', 'stopgap.running', newState === State.Running);
      if (newState === State.Running) this.changes.fire();
      if (newState === State.Stopped && this.client === client) {
        this.become({ state: 'stopped', message: 'the language server has ended' });
      }
    });
    try {
      await client.start();
      if (this.health.state === 'stopped') this.become({ state: 'starting', message: '', model: '', fraction: null, instructions: null });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.log.error(reason);
      this.become({ state: 'stopped', message: `${found.command} lsp did not start: ${reason}` });
    }
  }

  private async end(): Promise<void> {
    const client = this.client;
    this.client = undefined;
    // A client that failed to start, or is about to, refuses to be stopped.
    await client?.stop(2000).catch(() => undefined);
    await client?.dispose().catch(() => undefined);
  }

  private options(): LanguageClientOptions {
    return {
      documentSelector: SCHEMES.map((scheme) => ({ scheme })),
      initializationOptions: forServer(),
      outputChannel: this.log,
      traceOutputChannel: this.log,
      progressOnInitialization: false,
      middleware: this.middleware,
    };
  }

  private become(health: Health): void {
    this.health = health;
    this.changes.fire();
  }
}

/** One message, with the exact thing to run. */
export async function tellMissing(looked: readonly string[]): Promise<void> {
  const [copy, choose, more] = [`Copy "${INSTALL}"`, 'Choose the Program…', 'First Steps'];
  const where = looked.length > 3 ? `${looked.slice(0, 2).join(', ')} and ${looked.length - 2} other places` : looked.join(', ');
  const answer = await vscode.window.showWarningMessage(
    `The stopgap program was not found (looked at ${where}). In a terminal, in the folder with stopgap's source, run: ` +
      `${INSTALL} — then "Stopgap: Restart the Language Server".`,
    copy,
    choose,
    more,
  );
  if (answer === copy) await vscode.env.clipboard.writeText(INSTALL);
  if (answer === more) await vscode.commands.executeCommand('stopgap.welcome');
  if (answer === choose) {
    const [chosen] = (await vscode.window.showOpenDialog({ title: 'The stopgap program', canSelectMany: false })) ?? [];
    if (chosen) {
      const settings = vscode.workspace.getConfiguration('stopgap');
      await settings.update('path', chosen.fsPath, vscode.ConfigurationTarget.Global);
    }
  }
}
