// Moves the mouse and the keys of a browser as told: one JSON object a line in, one a line out.
// Knows nothing of VS Code; tests/test_vscode.py does.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [modules, program, url] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)('playwright-core');
// Containers have little shared memory, and a page that runs out of it goes blank.
const args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'];
const browser = await chromium.launch({ executablePath: program, args });
const page = await browser.newPage({ viewport: { width: 1280, height: 720 } });
page.setDefaultTimeout(60_000);

// Editors show blanks as no-break spaces.
const showing = (text) => ({ hasText: new RegExp(RegExp.escape(text).replaceAll('\\x20', '\\s+')) });

const deeds = {
  goto: () => page.goto(url, { waitUntil: 'commit', timeout: 60_000 }).then(() => null),
  press: ({ keys }) => page.keyboard.press(keys),
  type: ({ text, delay }) => page.keyboard.type(text, { delay: delay ?? 0 }),
  click: ({ selector }) => page.locator(selector).first().click(),
  // Waits until some element shows the text; "" waits until there is one at all.
  see: async ({ selector, text, timeout }) => {
    const found = page.locator(selector).filter(showing(text ?? '')).first();
    await found.waitFor({ state: 'visible', timeout: timeout ?? 60_000 });
    return found.innerText();
  },
  miss: ({ selector, text }) => page.locator(selector).filter(showing(text ?? '')).first().waitFor({ state: 'hidden' }),
  texts: ({ selector }) => page.locator(selector).allInnerTexts(),
  shot: ({ path }) => page.screenshot({ path }).then(() => path),
  sleep: ({ ms }) => page.waitForTimeout(ms),
  // Milliseconds from a key to the moment an element of this kind is there, by the browser's own clock.
  timed: async ({ keys, selector }) => {
    await page.evaluate((wanted) => {
      globalThis.keyAt = 0;
      globalThis.shownAt = undefined;
      addEventListener('keydown', () => (globalThis.keyAt = performance.now()), { capture: true, once: true });
      new MutationObserver((_, observer) => {
        if (!globalThis.keyAt || !document.querySelector(wanted)) return;
        globalThis.shownAt = performance.now();
        observer.disconnect();
      }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
    }, selector);
    await page.keyboard.press(keys);
    await page.waitForFunction(() => globalThis.shownAt !== undefined, undefined, { timeout: 5000 }).catch(() => undefined);
    return page.evaluate(() => (globalThis.shownAt === undefined ? null : globalThis.shownAt - globalThis.keyAt));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: deed, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ ok: (await deeds[deed](given)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error).slice(0, 2000) }));
  }
}
await browser.close();
