/**
 * The read-only document beside the user's file, in which a rewrite refines, and how it is coloured.
 *
 * A virtual document and decorations, because extensions can neither add lines to an editor nor may a draft ever
 * touch the user's buffer. Knows nothing of requests.
 */
import * as path from 'node:path';
import * as vscode from 'vscode';

const SCHEME = 'stopgap';
const COLOR = (name: string): vscode.ThemeColor => new vscode.ThemeColor(name);

/** Offsets are utf-16 units of `text`. */
export interface Picture {
  text: string;
  /** Still noise: shown dimmed. */
  noise: readonly [number, number][];
  /** What the rewrite adds. */
  added: readonly [number, number][];
  lenses: readonly Lens[];
  /** Behind the line of `noteAt`, such as how far the denoising is: code lenses do not come while the text changes. */
  note: string;
  noteAt: number;
}

export interface Lens {
  offset: number;
  title: string;
  command: string;
  argument?: number;
}

const NOTHING: Picture = { text: '', noise: [], added: [], lenses: [], note: '', noteAt: 0 };

export class DraftView implements vscode.Disposable, vscode.TextDocumentContentProvider, vscode.CodeLensProvider {
  private readonly changed = new vscode.EventEmitter<vscode.Uri>();
  private readonly lensesChanged = new vscode.EventEmitter<void>();
  readonly onDidChange = this.changed.event;
  readonly onDidChangeCodeLenses = this.lensesChanged.event;
  private readonly closed = new vscode.EventEmitter<void>();
  /** The user closed it. */
  readonly onDidClose = this.closed.event;
  private uri: vscode.Uri | undefined;
  private picture = NOTHING;
  /** Whose text the editor has been given last; it lags behind `picture` while drafts come fast. */
  private given = NOTHING;
  private count = 0;
  private readonly noise = vscode.window.createTextEditorDecorationType({ opacity: '0.35', fontStyle: 'italic' });
  private readonly note = vscode.window.createTextEditorDecorationType({
    after: { color: COLOR('editorCodeLens.foreground'), margin: '0 0 0 2em', fontStyle: 'italic' },
  });
  private readonly added = vscode.window.createTextEditorDecorationType({
    backgroundColor: COLOR('diffEditor.insertedTextBackground'),
    overviewRulerColor: COLOR('diffEditorOverview.insertedForeground'),
  });
  private readonly removed = vscode.window.createTextEditorDecorationType({
    backgroundColor: COLOR('diffEditor.removedTextBackground'),
  });
  private readonly listeners = [
    vscode.workspace.registerTextDocumentContentProvider(SCHEME, this),
    vscode.languages.registerCodeLensProvider({ scheme: SCHEME }, this),
    vscode.workspace.onDidChangeTextDocument((event) => this.isMine(event.document.uri) && this.paint()),
    vscode.window.onDidChangeVisibleTextEditors(() => this.paint()),
    vscode.window.tabGroups.onDidChangeTabs(({ closed }) => {
      if (closed.some((tab) => tab.input instanceof vscode.TabInputText && this.isMine(tab.input.uri))) {
        this.uri = undefined;
        this.closed.fire();
      }
    }),
  ];

  get isOpen(): boolean {
    return this.uri !== undefined;
  }

  /** What to wait longer between two pictures: the whole text travels to the window each time. */
  get costMs(): number {
    return this.picture.text.length / 1000;
  }

  /** Opens beside the active editor, which keeps the focus, and scrolls to `offset`. */
  async open(source: vscode.TextDocument, picture: Picture, offset: number): Promise<void> {
    this.count += 1;
    // The file's own name, because it decides the language and its colours.
    const uri = vscode.Uri.from({ scheme: SCHEME, path: `/stopgap/${path.posix.basename(source.uri.path)}`, query: `${this.count}` });
    this.uri = uri;
    this.picture = picture;
    let document = await vscode.workspace.openTextDocument(uri);
    if (document.languageId !== source.languageId) {
      document = await vscode.languages.setTextDocumentLanguage(document, source.languageId);
    }
    if (!this.isMine(uri)) return;
    const at = document.positionAt(offset);
    const editor = await vscode.window.showTextDocument(document, {
      viewColumn: vscode.ViewColumn.Beside,
      preserveFocus: true,
      preview: true,
      selection: new vscode.Range(at, at),
    });
    editor.revealRange(new vscode.Range(at, at), vscode.TextEditorRevealType.InCenterIfOutsideViewport);
    this.paint();
  }

  show(picture: Picture): void {
    const same = picture.text === this.picture.text;
    const lenses = JSON.stringify(picture.lenses) !== JSON.stringify(this.picture.lenses);
    this.picture = picture;
    if (!this.uri) return;
    if (same) this.paint();
    else this.changed.fire(this.uri);
    if (lenses) this.lensesChanged.fire();
  }

  /** Marks what goes away in the user's own editor. */
  strike(source: vscode.TextDocument, ranges: readonly vscode.Range[]): void {
    for (const editor of vscode.window.visibleTextEditors) {
      if (editor.document === source) editor.setDecorations(this.removed, ranges);
    }
  }

  async close(): Promise<void> {
    const uri = this.uri;
    this.uri = undefined;
    this.picture = NOTHING;
    const tabs = vscode.window.tabGroups.all.flatMap((group) => group.tabs);
    const mine = tabs.filter((tab) => tab.input instanceof vscode.TabInputText && tab.input.uri.toString() === uri?.toString());
    if (mine.length) await vscode.window.tabGroups.close(mine, true);
  }

  provideTextDocumentContent(uri: vscode.Uri): string {
    if (!this.isMine(uri)) return '';
    this.given = this.picture;
    return this.picture.text;
  }

  provideCodeLenses(document: vscode.TextDocument): vscode.CodeLens[] {
    if (!this.isMine(document.uri)) return [];
    return this.picture.lenses.map(({ offset, title, command, argument }) => {
      const at = document.positionAt(offset);
      return new vscode.CodeLens(new vscode.Range(at, at), {
        title,
        command,
        arguments: argument === undefined ? [] : [argument],
      });
    });
  }

  dispose(): void {
    vscode.Disposable.from(...this.listeners, this.noise, this.note, this.added, this.removed).dispose();
  }

  private isMine(uri: vscode.Uri): boolean {
    return this.uri !== undefined && uri.toString() === this.uri.toString();
  }

  /** The editor gets a new text some time after `changed`; colours of another text would be worse than none. */
  private paint(): void {
    for (const editor of vscode.window.visibleTextEditors) {
      const { document } = editor;
      if (!this.isMine(document.uri)) continue;
      const text = document.getText();
      const picture = [this.picture, this.given].find((one) => one.text === text);
      if (!picture) continue;
      editor.setDecorations(this.noise, ranges(document, picture.noise));
      editor.setDecorations(this.added, ranges(document, picture.added));
      const end = document.lineAt(document.positionAt(picture.noteAt)).range.end;
      const note = { range: new vscode.Range(end, end), renderOptions: { after: { contentText: picture.note } } };
      editor.setDecorations(this.note, picture.note ? [note] : []);
    }
  }
}

function ranges(document: vscode.TextDocument, offsets: readonly [number, number][]): vscode.Range[] {
  return offsets.map(([start, end]) => new vscode.Range(document.positionAt(start), document.positionAt(end)));
}
