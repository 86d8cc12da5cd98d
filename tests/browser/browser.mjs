// A browser by its binary, each spoken to in its own way and each with the same doors: `tab()` is a page with `look`, `go`,
// `evaluate`, `run`, `press` and `close`, which writes down what it asks for outside of the disk (`requests`) and what went
// wrong in it (`errors`).
export async function open(binary, variables = {}) {
  const kind = /firefox/i.test(binary) ? 'firefox' : /webkit/i.test(binary) ? 'webkit' : 'chromium';
  const { open } = await import(`./${kind}.mjs`);
  return { kind, ...(await open(binary, variables)) };
}
