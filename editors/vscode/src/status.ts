/** The item in the status bar and the menu behind it. */
import * as vscode from 'vscode';
import type { Health, Server } from './server.ts';
import { disabledLanguages, enabled, languageHere } from './settings.ts';

/** A spinner that comes and goes with every keystroke is worse than none. */
const SHOW_THINKING_AFTER_MS = 250;

interface Face {
  text: string;
  tooltip: string;
  warn?: boolean;
}

export class StatusItem implements vscode.Disposable {
  private readonly item = vscode.window.createStatusBarItem('stopgap.status', vscode.StatusBarAlignment.Right, 100);
  private readonly server: Server;
  private readonly listeners: vscode.Disposable[];
  private timer: ReturnType<typeof setTimeout> | undefined;
  private spinning = false;
  /** Of the rewrite being watched, such as "7/48"; empty when there is none. */
  private step = '';

  constructor(server: Server) {
    this.server = server;
    this.item.name = 'stopgap';
    this.item.command = 'stopgap.menu';
    this.listeners = [
      server.onDidChange(() => this.update()),
      vscode.window.onDidChangeActiveTextEditor(() => this.show()),
      vscode.workspace.onDidChangeConfiguration((event) => event.affectsConfiguration('stopgap') && this.show()),
    ];
    this.show();
    this.item.show();
  }

  progress(step: string): void {
    this.step = step;
    this.show();
  }

  dispose(): void {
    clearTimeout(this.timer);
    vscode.Disposable.from(...this.listeners).dispose();
    this.item.dispose();
  }

  private update(): void {
    if (this.server.busy === 0) {
      clearTimeout(this.timer);
      this.timer = undefined;
      this.spinning = false;
    } else if (!this.spinning && this.timer === undefined) {
      this.timer = setTimeout(() => {
        this.spinning = true;
        this.show();
      }, SHOW_THINKING_AFTER_MS);
    }
    this.show();
  }

  private show(): void {
    const language = languageHere();
    const off = !enabled() ? 'everywhere or here' : language && disabledLanguages().includes(language) ? `for ${language}` : '';
    const face = faceOf(this.server.health, off, this.spinning, this.step);
    this.item.text = face.text;
    this.item.tooltip = `${face.tooltip}\nClick for the menu.`;
    this.item.accessibilityInformation = { label: `stopgap: ${face.tooltip}`, role: 'button' };
    this.item.backgroundColor = face.warn ? new vscode.ThemeColor('statusBarItem.warningBackground') : undefined;
  }
}

/** What cannot go on comes first, then what the user has switched off, then what goes on. */
function faceOf(health: Health, off: string, spinning: boolean, step: string): Face {
  // Drafts come from a model that is loaded, whatever the last word on its state was.
  if (step) return { text: `$(loading~spin) stopgap ${step}`, tooltip: 'denoising a rewrite' };
  switch (health.state) {
    case 'missing':
      return { text: '$(warning) stopgap: not found', tooltip: health.message, warn: true };
    case 'stopped':
      return health.message === 'starting'
        ? { text: '$(loading~spin) stopgap', tooltip: 'the language server is starting' }
        : { text: '$(warning) stopgap: stopped', tooltip: health.message, warn: true };
    case 'error':
      return { text: '$(error) stopgap: error', tooltip: health.message, warn: true };
    case 'offline':
      return { text: '$(warning) stopgap: offline', tooltip: health.message || 'no daemon answers', warn: true };
    case 'paused':
      return { text: '$(debug-pause) stopgap: paused', tooltip: health.message || "paused; the model's memory is free" };
    case 'loading': {
      const part = health.fraction === null ? '' : ` ${Math.round(100 * health.fraction)}%`;
      return { text: `$(loading~spin) stopgap: loading${part}`, tooltip: health.message || 'the model is being loaded' };
    }
    case 'starting':
    case 'ready': {
      const model = health.model ? `ready, model ${health.model}` : 'ready; the model is loaded at the first request';
      if (spinning) return { text: '$(loading~spin) stopgap', tooltip: 'thinking' };
      if (off) return { text: '$(circle-slash) stopgap', tooltip: `ghost text is off ${off}` };
      return { text: '$(sparkle) stopgap', tooltip: model };
    }
  }
}

interface Entry extends vscode.QuickPickItem {
  command?: string;
}

export async function menu(server: Server): Promise<void> {
  const language = languageHere();
  const paused = server.health.state === 'paused';
  const verb = (on: boolean): string => (on ? 'Turn off' : 'Turn on');
  const entries: Entry[] = [
    { label: '$(sparkle) Rewrite this function or the selection', command: 'stopgap.rewriteFunction' },
    { label: '$(edit) Rewrite with instruction…', command: 'stopgap.rewriteWithInstruction' },
    { label: '$(question) Why nothing?', command: 'stopgap.whyNothing' },
    { label: 'Ghost text', kind: vscode.QuickPickItemKind.Separator },
    { label: `$(globe) ${verb(enabled())} everywhere`, command: 'stopgap.toggle' },
    { label: `$(folder) ${verb(enabled())} in this workspace`, command: 'stopgap.toggleWorkspace' },
    ...(language
      ? [{ label: `$(file-code) ${verb(!disabledLanguages().includes(language))} for ${language}`, command: 'stopgap.toggleLanguage' }]
      : []),
    { label: 'Model', kind: vscode.QuickPickItemKind.Separator },
    paused
      ? { label: '$(debug-start) Resume', command: 'stopgap.resumeModel' }
      : { label: "$(debug-pause) Pause: free the model's memory", command: 'stopgap.pauseModel' },
    { label: '$(debug-restart) Restart the language server', command: 'stopgap.restart' },
    { label: '$(output) Show log', command: 'stopgap.showLog' },
    { label: '$(gear) Settings', command: 'workbench.action.openSettings' },
  ];
  const title = `stopgap: ${server.health.message || server.health.state}`;
  const chosen = await vscode.window.showQuickPick(entries, { title });
  if (chosen?.command === 'workbench.action.openSettings') {
    await vscode.commands.executeCommand(chosen.command, '@ext:stopgap.stopgap');
  } else if (chosen?.command) {
    await vscode.commands.executeCommand(chosen.command);
  }
}
