// Pictures of pages beside the stored ones. A stored picture is the page in the fonts of fonts.conf, one value for every 10 by
// 10 pixels: small enough to keep, and anything that moves, breaks, grows or changes its colour is in it.
//
//   node pictures.mjs CHROMIUM SITE STORED compare|renew PAGE…
//
// Prints one line per page that does not look as stored and ends with 1 if there is any.
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { open } from './chromium.mjs';
import { decode, encode, shrink } from './png.mjs';

const [binary, site, stored, mode, ...pages] = process.argv.slice(2);
// Widths of a phone, a desk and a wall, and a sheet of A4 across; the scheme is dark where it is least looked at.
const VIEWS = [
  { name: '390-light', width: 390, scheme: 'light' },
  { name: '1440-dark', width: 1440, scheme: 'dark' },
  { name: '1920-light', width: 1920, scheme: 'light' },
  { name: 'print', width: 1032, scheme: 'light', media: 'print' },
];
// What is below has the same parts as what is above.
const HEIGHT = 1800;
const CELL = 10;
// A picture differs when more than this share of its cells has a value that is off by more than this, of 255, or when more than
// so many cells are far off. Two builds of Chromium differ by the edges of letters, which stays below both; a line that breaks
// elsewhere is above the first, a mark in another colour above the second.
const [OFF, SHARE] = [24, 0.004];
const [FAR, FEW] = [56, 2];

const fonts = join(dirname(fileURLToPath(import.meta.url)), 'fonts.conf');
const browser = await open(binary, { FONTCONFIG_FILE: fonts });
const faults = [];
const kept = new Set();
mkdirSync(stored, { recursive: true });
try {
  for (const page of pages) {
    const tab = await browser.tab();
    for (const view of VIEWS) {
      await tab.look(view.width, 900, view.scheme, { media: view.media });
      await tab.go(pathToFileURL(`${resolve(site)}/${page}`).href);
      const picture = shrink(decode(await tab.picture({ height: HEIGHT })), CELL);
      const name = `${page.replace(/\.html$/, '').replaceAll('/', '_')}-${view.name}.png`;
      kept.add(name);
      settle(join(stored, name), picture, `${page}, ${view.name}`);
    }
    await tab.close();
  }
} finally {
  await browser.close();
}
// A picture of a page that is no more would be compared with nothing.
for (const name of readdirSync(stored).filter((name) => name.endsWith('.png') && !kept.has(name))) {
  if (mode === 'renew') rmSync(join(stored, name));
  else faults.push(`${name}: stored, but there is no such page`);
}

function settle(path, picture, what) {
  if (mode === 'renew') {
    const same = existsSync(path) && !difference(decode(readFileSync(path)), picture);
    if (!same) writeFileSync(path, encode(picture));
    return;
  }
  const fault = existsSync(path) ? difference(decode(readFileSync(path)), picture) : 'no picture is stored';
  if (fault) faults.push(`${what}: ${fault}`);
}

function difference(before, now) {
  const size = ({ width, height }) => `${width * CELL} by ${height * CELL} px`;
  if (before.width !== now.width || before.height !== now.height) return `${size(now)}, stored ${size(before)}`;
  let [off, far] = [0, 0];
  const [first, last] = [[Infinity, Infinity], [-1, -1]];
  for (let cell = 0; cell < now.width * now.height; cell += 1) {
    const most = Math.max(...[0, 1, 2].map((c) => Math.abs(before.data[cell * 3 + c] - now.data[cell * 3 + c])));
    if (most <= OFF) continue;
    off += 1;
    if (most > FAR) far += 1;
    [cell % now.width, Math.floor(cell / now.width)].forEach((at, axis) => {
      first[axis] = Math.min(first[axis], at * CELL);
      last[axis] = Math.max(last[axis], (at + 1) * CELL);
    });
  }
  const share = off / (now.width * now.height);
  if (share <= SHARE && far <= FEW) return '';
  return `${(share * 100).toFixed(1)}% of it differs, ${far} cells by far, from (${first.join(', ')}) to (${last.join(', ')})`;
}

faults.forEach((fault) => console.log(fault));
console.log(`${kept.size} pictures, ${faults.length} faults`);
process.exitCode = faults.length ? 1 : 0;
