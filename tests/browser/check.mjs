// Looks at one page of every kind with a real browser: accessibility, overflow, requests, errors, both schemes, scripts off, the
// keyboard, and in Chromium steady pictures. Prints one line per fault and ends with 1 if there is any.
//
//   node --experimental-websocket check.mjs BROWSER AXE SITE PAGE…
import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { open } from './browser.mjs';

const [binary, axePath, site, ...pages] = process.argv.slice(2);
const root = resolve(site);
const axe = readFileSync(axePath, 'utf8');
const WIDTHS = [390, 1440];
const SCHEMES = ['light', 'dark'];
const faults = [];
const address = (page) => pathToFileURL(`${root}/${page}`).href;

const browser = await open(binary);
try {
  for (const page of pages) {
    const tab = await browser.tab();
    await looked(tab, page);
    await bare(tab, page);
    if (page.endsWith('index.html') && !page.slice(0, -'index.html'.length).replace('ko/', '')) await board(tab, page);
    if (page.endsWith('search.html')) await search(tab, page);
    if (browser.kind === 'chromium') await steady(tab, page);
    const inside = (request) => request.startsWith(pathToFileURL(root).href + '/') || /^(data|about):/.test(request);
    new Set(tab.requests.filter((request) => !inside(request))).forEach((request) => faults.push(`${page}: asks for ${request}`));
    new Set(tab.errors).forEach((error) => faults.push(`${page}: ${error}`));
    await tab.close();
  }
} finally {
  await browser.close();
}

// Nothing runs over to the side, axe finds nothing, and the schemes differ.
async function looked(tab, page) {
  const papers = new Set();
  for (const scheme of SCHEMES) {
    for (const width of WIDTHS) {
      const at = `${page} at ${width} px, ${scheme}`;
      await tab.look(width, 900, scheme);
      await tab.go(address(page));
      const { wide, who, inner, paper } = await tab.evaluate(`(() => {
        const limit = document.documentElement.clientWidth;
        const inside = (element) => {
          for (let up = element.parentElement; up; up = up.parentElement) {
            if (getComputedStyle(up).overflowX !== 'visible') return true;
          }
          return false;
        };
        const out = [...document.body.querySelectorAll('*')].filter((element) =>
          !element.closest('svg') && element.getBoundingClientRect().right > limit + 1 && !inside(element));
        return { wide: document.documentElement.scrollWidth > limit, who: out.slice(0, 3).map((e) => e.outerHTML.slice(0, 80)),
          inner: innerWidth, paper: getComputedStyle(document.body).backgroundColor };
      })()`);
      papers.add(paper);
      if (inner !== width) faults.push(`${at}: the window is ${inner} px wide`);
      if (wide) faults.push(`${at}: runs over to the side: ${who.join(' | ')}`);
      await tab.run(axe);
      const violations = await tab.evaluate(`axe.run(document, { resultTypes: ['violations'], preload: false }).then((result) =>
        result.violations.map((v) => v.id + ': ' + v.help + ': ' + v.nodes.slice(0, 2).map((n) => n.html.slice(0, 160) + ' ' +
          (n.any[0] ? n.any[0].message : '')).join(' | ')))`);
      violations.forEach((violation) => faults.push(`${at}: ${violation}`));
    }
  }
  if (papers.size !== SCHEMES.length) faults.push(`${page}: light and dark have the paper ${[...papers].join(', ')}`);
}

// Without scripts a page says the same and is as high; the search alone needs them.
async function bare(tab, page) {
  const visit = async (scripts) => {
    await tab.look(1440, 900, 'light', { scripts });
    await tab.go(address(page));
    return tab.evaluate(`(() => {
      document.querySelectorAll('.search').forEach((box) => box.remove());
      return { words: document.body.innerText.replace(/\\s+/g, ' '), height: document.documentElement.scrollHeight,
        charts: document.querySelectorAll('svg.chart').length };
    })()`);
  };
  const [first, second] = [await visit(true), await visit(false)];
  if (first.words !== second.words || first.charts !== second.charts) faults.push(`${page}: says something else without scripts`);
  if (first.height !== second.height) faults.push(`${page}: ${first.height} px high with scripts, ${second.height} px without`);
}

// The leaderboard by the keyboard: a filter hides the rows of its group and shows them again, a heading sorts.
async function board(tab, page) {
  await tab.look(1440, 900, 'light');
  await tab.go(address(page));
  const shown = `[...document.querySelectorAll('.board tbody tr')].filter((row) => row.checkVisibility()).length`;
  const focus = (selector) => tab.evaluate(`document.querySelector('${selector}').focus()`);
  const all = await tab.evaluate(shown);
  await focus('.filters input');
  await tab.press(' ');
  const some = await tab.evaluate(shown);
  if (!(some < all && some > 0)) faults.push(`${page}: a filter that is off leaves ${some} of ${all} rows`);
  await tab.press(' ');
  if ((await tab.evaluate(shown)) !== all) faults.push(`${page}: a filter that is on again does not show all rows`);
  const scores = `[...document.querySelectorAll('td.c-score[data-value]')].map((cell) => Number(cell.dataset.value))`;
  await focus('th.c-score button');
  await tab.press('Enter');
  const [values, sort] = [await tab.evaluate(scores), await tab.evaluate(`document.querySelector('th.c-score').ariaSort`)];
  if (values.length < 2 || values.some((value, at) => at > 0 && value < values[at - 1]) || sort !== 'ascending') {
    faults.push(`${page}: sorted by score, ${sort}, it shows ${values.join(', ')}`);
  }
}

// Search by the keyboard: a word that is on pages finds them, and one that is on none finds nothing.
async function search(tab, page) {
  await tab.look(1440, 900, 'light');
  await tab.go(address(page));
  await tab.evaluate(`document.querySelector('#query').focus()`);
  for (const key of 'clamp') await tab.press(key);
  const found = `[...document.querySelectorAll('.hits a')].map((link) => link.href)`;
  let hits = [];
  // The index is read when the box is entered.
  for (let tries = 0; tries < 50 && !hits.length; tries += 1) {
    await new Promise((resolve) => { setTimeout(resolve, 100); });
    hits = await tab.evaluate(found);
  }
  const lost = hits.filter((hit) => !existsSync(fileURLToPath(hit.split('#')[0])));
  if (!hits.length || lost.length) faults.push(`${page}: a search finds ${hits.length} pages, of which are not there: ${lost.join(', ')}`);
  for (const key of 'qqq') await tab.press(key);
  if ((await tab.evaluate(found)).length) faults.push(`${page}: a search for nothing that is there finds something`);
}

// Two visits give one picture, and print gives pages.
async function steady(tab, page) {
  const visit = async () => {
    await tab.look(1440, 900, 'light');
    await tab.go(address(page));
    return tab.picture();
  };
  if (!(await visit()).equals(await visit())) faults.push(`${page}: two pictures of it differ`);
  const pdf = await tab.print();
  if (!pdf.subarray(0, 5).equals(Buffer.from('%PDF-'))) faults.push(`${page}: does not print`);
}

faults.forEach((fault) => console.log(fault));
console.log(`${pages.length} pages, ${faults.length} faults`);
process.exitCode = faults.length ? 1 : 0;
