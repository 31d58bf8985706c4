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
  // What elements show that are not quite opaque.
  dim: ({ selector }) =>
    page.locator(selector).evaluateAll((all) => {
      const faint = (element) => Number(getComputedStyle(element).opacity) < 1;
      return all.filter(faint).map((element) => element.textContent);
    }),
  shot: ({ path }) => page.screenshot({ path }).then(() => path),
  sleep: ({ ms }) => page.waitForTimeout(ms),
  // When a key came and when an element of a kind was there, in milliseconds of the calendar by the browser's clock;
  // key is -1 if the element was there before, shown 0 if it did not come within the timeout.
  timed: async ({ keys, selector, timeout }) => {
    await page.evaluate((wanted) => {
      const times = (globalThis.times = { key: 0, shown: 0 });
      const now = () => performance.timeOrigin + performance.now();
      const there = () => Boolean(document.querySelector(wanted));
      addEventListener('keydown', () => (times.key = there() ? -1 : now()), { capture: true, once: true });
      new MutationObserver((_, observer) => {
        if (times.key <= 0 || !there()) return;
        times.shown = now();
        observer.disconnect();
      }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
    }, selector);
    await page.keyboard.press(keys);
    await page.waitForFunction(() => globalThis.times.shown, undefined, { timeout }).catch(() => undefined);
    return page.evaluate(() => globalThis.times);
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
