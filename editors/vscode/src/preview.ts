/**
 * One rewrite at a time: asked for, watched while it settles, then taken whole, in part, again, or not at all.
 *
 * The user's buffer is touched by accepting and by nothing else; any other change to it drops the preview.
 */
import { randomUUID } from 'node:crypto';
import * as vscode from 'vscode';
import type { Ask } from './actions.ts';
import { DraftView, type Lens, type Picture } from './draftView.ts';
import { afterAccepting, applied, followed, gaps, grouped, placed, type Edit, type Hunk } from './hunks.ts';
import * as protocol from './protocol.ts';
import type { Server } from './server.ts';

/** Drafts come with every denoising step, faster than anyone can read. */
const FRAME_MS = 80;

interface Session {
  /** Its range moves with the hunks that are accepted. */
  ask: Ask;
  readonly document: vscode.TextDocument;
  readonly column: vscode.ViewColumn | undefined;
  seed: number;
  /** Names the request whose drafts are shown. */
  token: string;
  cancel: vscode.CancellationTokenSource;
  version: number;
  /** What is left to decide; empty while it refines. */
  hunks: Hunk[];
  fill: number;
}

export class Previews implements vscode.Disposable {
  private readonly server: Server;
  private readonly step: (text: string) => void;
  private readonly view = new DraftView();
  private session: Session | undefined;
  /** The newest draft that is waiting for its frame. */
  private waiting: protocol.Draft | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private applying = false;
  private readonly listeners: vscode.Disposable[];

  /** `step` is told how far the denoising is, for the status bar; an empty text ends it. */
  constructor(server: Server, step: (text: string) => void) {
    this.server = server;
    this.step = step;
    this.listeners = [
      this.view,
      this.view.onDidClose(() => void this.reject()),
      server.onDraft((draft) => this.drafted(draft)),
      vscode.workspace.onDidChangeTextDocument((event) => this.edited(event)),
    ];
  }

  async start(ask: Ask): Promise<void> {
    if (!this.server.running()) return;
    await this.reject();
    const document = await vscode.workspace.openTextDocument(ask.uri);
    if (ask.action === 'instruction' && ask.instruction === undefined) {
      if (!(await this.server.followsInstructions())) {
        void vscode.window.showInformationMessage('stopgap: the loaded model does not follow instructions');
        return;
      }
      const instruction = await vscode.window.showInputBox({
        title: 'stopgap: Rewrite with Instruction',
        prompt: 'What shall become of this code?',
        ignoreFocusOut: true,
      });
      if (!instruction?.trim()) return;
      ask = { ...ask, instruction };
    }
    const column = vscode.window.visibleTextEditors.find((editor) => editor.document === document)?.viewColumn;
    this.session = {
      ask,
      document,
      column,
      seed: 0,
      token: '',
      cancel: new vscode.CancellationTokenSource(),
      version: document.version,
      hunks: [],
      fill: 0,
    };
    await this.run(this.session);
  }

  /** Another rewrite of what stands there now. */
  async tryAgain(): Promise<void> {
    const session = this.session;
    if (!session) return;
    session.cancel.cancel();
    if (session.fill) this.server.notify(protocol.didReject, this.feedback(session));
    session.seed += 1;
    await this.run(session);
  }

  async accept(): Promise<void> {
    const session = this.session;
    if (!session?.hunks.length) return;
    const characters = inserted(session.hunks.flat());
    if (!(await this.apply(session, session.hunks.flat()))) return;
    this.server.notify(protocol.didAccept, { ...this.feedback(session), characters });
    await this.end(session);
  }

  async acceptHunk(index: number): Promise<void> {
    const session = this.session;
    const hunk = session?.hunks[index];
    if (!session || !hunk || !(await this.apply(session, hunk))) return;
    this.server.notify(protocol.didAcceptPartially, { ...this.feedback(session), characters: inserted(hunk) });
    await this.remain(session, afterAccepting(session.hunks, index));
  }

  async skipHunk(index: number): Promise<void> {
    const session = this.session;
    if (session) await this.remain(session, session.hunks.filter((_, i) => i !== index));
  }

  /** Cancels what still runs, and forgets what was offered. */
  async reject(): Promise<void> {
    const session = this.session;
    if (!session) return;
    if (session.fill) this.server.notify(protocol.didReject, this.feedback(session));
    await this.end(session);
  }

  dispose(): void {
    clearTimeout(this.timer);
    this.session?.cancel.cancel();
    vscode.Disposable.from(...this.listeners).dispose();
  }

  private async run(session: Session): Promise<void> {
    const client = this.server.running();
    if (!client) return this.end(session);
    const { ask, document } = session;
    const token = (session.token = randomUUID());
    session.cancel = new vscode.CancellationTokenSource();
    session.version = document.version;
    session.hunks = [];
    session.fill = 0;
    this.view.strike(document, []);
    await this.context();
    const params: protocol.FillParams = {
      action: ask.action,
      textDocument: { uri: client.code2ProtocolConverter.asUri(ask.uri) },
      range: client.code2ProtocolConverter.asRange(ask.range),
      seed: session.seed,
      token,
      ...(ask.instruction === undefined ? {} : { instruction: ask.instruction }),
    };
    let answer: protocol.Preview | protocol.Nothing;
    try {
      answer = await this.server.thinking(client.sendRequest(protocol.fill, params, session.cancel.token));
    } catch (error) {
      if (this.isCurrent(session, token)) {
        await this.end(session);
        void vscode.window.showWarningMessage(`stopgap: ${error instanceof Error ? error.message : String(error)}`);
      }
      return;
    }
    if (!this.isCurrent(session, token)) return;
    this.still();
    if ('reason' in answer) {
      await this.end(session);
      void vscode.window.showInformationMessage(`stopgap: ${answer.reason}`);
    } else if (document.version !== session.version) {
      await this.end(session);
    } else {
      const edits = (await client.protocol2CodeConverter.asTextEdits(answer.edits)) ?? [];
      const offsets = edits.map(({ range, newText }) => ({
        start: document.offsetAt(range.start),
        end: document.offsetAt(range.end),
        text: newText,
      }));
      session.fill = answer.fill;
      this.server.notify(protocol.didShow, this.feedback(session));
      await this.remain(session, grouped(document.getText(), offsets));
    }
  }

  /** A draft waits for the next frame, and gives way to a newer one. */
  private drafted(draft: protocol.Draft): void {
    const session = this.session;
    if (!session || draft.token !== session.token || session.hunks.length) return;
    this.waiting = draft;
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      const newest = this.waiting;
      this.waiting = undefined;
      if (newest && this.session?.token === newest.token) void this.refine(this.session, newest);
    }, FRAME_MS + this.view.costMs);
  }

  private async refine(session: Session, draft: protocol.Draft): Promise<void> {
    if (draft.textDocument.version !== session.version || session.document.version !== session.version) return;
    const { document } = session;
    const before = document.getText();
    const offset = (at: protocol.Draft['range']['start']): number =>
      document.offsetAt(new vscode.Position(at.line, at.character));
    const [start, end] = [offset(draft.range.start), offset(draft.range.end)];
    const noise = gaps(draft.settled, draft.text.length).map(([a, b]): [number, number] => [a + start, b + start]);
    this.step(`${draft.step}/${draft.steps}`);
    const text = before.slice(0, start) + draft.text + before.slice(end);
    const note = `step ${draft.step} of at most ${draft.steps} · Esc cancels`;
    await this.paint(session, { text, noise, added: [], lenses: [], note, noteAt: start }, start);
  }

  /** Shows what is left to decide; nothing left ends the session. */
  private async remain(session: Session, hunks: Hunk[]): Promise<void> {
    const [first] = hunks;
    if (!first) return this.end(session);
    session.hunks = hunks;
    const text = session.document.getText();
    const edits = hunks.flat();
    const places = placed(edits);
    const starts = new Map(edits.map((edit, i) => [edit, places[i]?.[0] ?? 0]));
    const top = starts.get(first[0]) ?? 0;
    const several = hunks.length > 1;
    const lenses: Lens[] = [
      { offset: top, title: several ? '$(check-all) Accept all' : '$(check) Accept', command: 'stopgap.accept' },
      { offset: top, title: '$(refresh) Try again', command: 'stopgap.tryAgain' },
      { offset: top, title: '$(close) Reject (Esc)', command: 'stopgap.reject' },
      ...(several ? hunks : []).flatMap(([edit], argument): Lens[] => [
        { offset: starts.get(edit) ?? 0, title: '$(check) Accept this', command: 'stopgap.acceptHunk', argument },
        { offset: starts.get(edit) ?? 0, title: '$(close) Skip this', command: 'stopgap.skipHunk', argument },
      ]),
    ];
    await this.paint(session, { text: applied(text, edits), noise: [], added: places, lenses, note: '', noteAt: 0 }, top);
    if (this.session !== session) return;
    const { document } = session;
    this.view.strike(
      document,
      edits.map((edit) => new vscode.Range(document.positionAt(edit.start), document.positionAt(edit.end))),
    );
    await this.context();
  }

  private async paint(session: Session, picture: Picture, offset: number): Promise<void> {
    if (this.view.isOpen) this.view.show(picture);
    else await this.view.open(session.document, picture, offset);
    // Rejected while it was opening.
    if (this.session !== session) await this.view.close();
  }

  private async apply(session: Session, edits: readonly Edit[]): Promise<boolean> {
    const { ask, document, column } = session;
    if (document.version !== session.version) return false;
    const range = followed([document.offsetAt(ask.range.start), document.offsetAt(ask.range.end)], edits);
    const where = column === undefined ? {} : { viewColumn: column };
    const editor = await vscode.window.showTextDocument(document, where);
    this.applying = true;
    try {
      const done = await editor.edit((builder) => {
        for (const { start, end, text } of edits) {
          builder.replace(new vscode.Range(document.positionAt(start), document.positionAt(end)), text);
        }
      });
      session.version = document.version;
      if (done) {
        const [start, end] = range.map((offset) => document.positionAt(offset)) as [vscode.Position, vscode.Position];
        session.ask = { ...ask, range: new vscode.Range(start, end) };
      }
      return done;
    } finally {
      this.applying = false;
    }
  }

  private edited({ document, contentChanges }: vscode.TextDocumentChangeEvent): void {
    if (this.session?.document !== document || this.applying || !contentChanges.length) return;
    void this.reject();
    void vscode.window.setStatusBarMessage('stopgap: the text changed, so the rewrite was dropped', 4000);
  }

  private async end(session: Session): Promise<void> {
    if (this.session !== session) return;
    this.session = undefined;
    session.cancel.cancel();
    this.still();
    this.view.strike(session.document, []);
    await Promise.all([this.view.close(), this.context()]);
  }

  private still(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.waiting = undefined;
    this.step('');
  }

  private isCurrent(session: Session, token: string): boolean {
    return this.session === session && session.token === token;
  }

  private feedback(session: Session): protocol.Feedback {
    return { fill: session.fill, language: session.document.languageId };
  }

  private async context(): Promise<void> {
    const ready = Boolean(this.session?.hunks.length);
    await vscode.commands.executeCommand('setContext', 'stopgap.previewing', this.session !== undefined);
    await vscode.commands.executeCommand('setContext', 'stopgap.previewReady', ready);
  }
}

function inserted(edits: readonly Edit[]): number {
  return edits.reduce((sum, edit) => sum + edit.text.length, 0);
}
