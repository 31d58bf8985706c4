/** "Why nothing?": what became of the last requests, in a read-only document beside the file. */
import * as vscode from 'vscode';
import { why } from './protocol.ts';
import type { Server } from './server.ts';

const URI = vscode.Uri.parse('stopgap-why:why nothing');

export class Reasons implements vscode.Disposable, vscode.TextDocumentContentProvider {
  private readonly changed = new vscode.EventEmitter<vscode.Uri>();
  readonly onDidChange = this.changed.event;
  private text = '';
  private readonly registration = vscode.workspace.registerTextDocumentContentProvider(URI.scheme, this);

  async show(server: Server): Promise<void> {
    const client = server.running();
    if (!client) return;
    const { lines } = await client.sendRequest(why, { last: 20 });
    const list = lines.length ? lines.join('\n') : 'There has been no request yet.';
    this.text = `What became of the last requests, newest last:\n\n${list}\n`;
    this.changed.fire(URI);
    const document = await vscode.workspace.openTextDocument(URI);
    await vscode.window.showTextDocument(document, { viewColumn: vscode.ViewColumn.Beside, preview: true });
  }

  provideTextDocumentContent(): string {
    return this.text;
  }

  dispose(): void {
    this.registration.dispose();
  }
}
