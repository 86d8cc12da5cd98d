// Pictures of pages for people: every width light and dark, and as printed.
//
//   node --experimental-websocket shoot.mjs BROWSER SITE OUT WIDTH,… PAGE…
import { mkdirSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { open } from './browser.mjs';

const [binary, site, out, widths, ...pages] = process.argv.slice(2);
mkdirSync(out, { recursive: true });
const browser = await open(binary);
try {
  for (const page of pages) {
    const tab = await browser.tab();
    const url = pathToFileURL(`${resolve(site)}/${page}`).href;
    const name = page.replace(/\.html$/, '').replaceAll('/', '_');
    for (const width of widths.split(',').map(Number)) {
      for (const scheme of ['light', 'dark']) {
        await tab.look(width, 1000, scheme);
        await tab.go(url);
        writeFileSync(`${out}/${name}-${width}-${scheme}.png`, await tab.picture());
      }
    }
    await tab.look(1440, 1000, 'light');
    await tab.go(url);
    writeFileSync(`${out}/${name}.pdf`, await tab.print());
    await tab.close();
  }
} finally {
  await browser.close();
}
