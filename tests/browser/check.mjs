// Looks at one page of every kind with a real browser: accessibility, overflow, requests, scripts off, steady pictures,
// print. Prints one line per fault and ends with 1 if there is any.
//
//   node check.mjs CHROMIUM AXE SITE PAGE…
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { open } from './chromium.mjs';

const [binary, axePath, site, ...pages] = process.argv.slice(2);
const root = resolve(site);
const axe = readFileSync(axePath, 'utf8');
const WIDTHS = [390, 1440];
const SCHEMES = ['light', 'dark'];
const faults = [];

const browser = await open(binary);
try {
  for (const page of pages) {
    const url = pathToFileURL(`${root}/${page}`).href;
    const tab = await browser.tab();
    for (const width of WIDTHS) {
      for (const scheme of SCHEMES) {
        const at = `${page} at ${width} px, ${scheme}`;
        await tab.look(width, 900, scheme);
        await tab.go(url);
        const { wide, who } = await tab.evaluate(`(() => {
          const limit = document.documentElement.clientWidth;
          const inside = (element) => {
            for (let up = element.parentElement; up; up = up.parentElement) {
              if (getComputedStyle(up).overflowX !== 'visible') return true;
            }
            return false;
          };
          const out = [...document.body.querySelectorAll('*')].filter((element) =>
            !element.closest('svg') && element.getBoundingClientRect().right > limit + 1 && !inside(element));
          return { wide: document.documentElement.scrollWidth > limit, who: out.slice(0, 3).map((e) => e.outerHTML.slice(0, 80)) };
        })()`);
        if (wide) faults.push(`${at}: runs over to the side: ${who.join(' | ')}`);
        await tab.evaluate(axe);
        const violations = await tab.evaluate(`axe.run(document, { resultTypes: ['violations'] }).then((result) =>
          result.violations.map((v) => v.id + ': ' + v.help + ': ' + v.nodes.slice(0, 2).map((n) => n.html.slice(0, 160) + ' ' +
            (n.any[0] ? n.any[0].message : '')).join(' | ')))`);
        violations.forEach((violation) => faults.push(`${at}: ${violation}`));
      }
    }
    const outside = tab.requests.filter((request) => !request.startsWith(pathToFileURL(root).href + '/') && !request.startsWith('data:'));
    outside.forEach((request) => faults.push(`${page}: asks for ${request}`));
    await tab.close();
    await steady(page, url);
  }
} finally {
  await browser.close();
}

// Two visits give one picture, a visit without scripts has the same height and words, and print gives pages.
async function steady(page, url) {
  const tab = await browser.tab();
  const visit = async (scripts) => {
    await tab.look(1440, 900, 'light', { scripts });
    await tab.go(url);
    return tab.picture();
  };
  const first = await visit(true);
  if (!first.equals(await visit(true))) faults.push(`${page}: two pictures of it differ`);
  // The picture's height stands behind its signature and the length and name of its first chunk, after the width.
  const height = (png) => png.readUInt32BE(20);
  const bare = await visit(false);
  if (Math.abs(height(bare) - height(first)) > (page.includes('search') ? 400 : 0)) {
    faults.push(`${page}: ${height(first)} px high with scripts, ${height(bare)} px without`);
  }
  const pdf = await tab.print();
  if (!pdf.subarray(0, 5).equals(Buffer.from('%PDF-'))) faults.push(`${page}: does not print`);
  await tab.close();
}

faults.forEach((fault) => console.log(fault));
console.log(`${pages.length} pages, ${faults.length} faults`);
process.exitCode = faults.length ? 1 : 0;
