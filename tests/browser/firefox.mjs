// One headless Firefox, spoken to in WebDriver BiDi over the socket that it opens: no client library, no driver between.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

// What `look` sets are preferences, which only scripts of the browser itself may change.
const FLAGS = ['--headless', '--no-remote', '--remote-debugging-port=0', '--remote-allow-system-access'];
const EVENTS = ['network.beforeRequestSent', 'log.entryAdded'];

export async function open(binary, variables) {
  if (typeof WebSocket === 'undefined') throw new Error('this Node has no WebSocket: give it --experimental-websocket');
  const profile = mkdtempSync(join(tmpdir(), 'browser-'));
  const child = spawn(binary, [...FLAGS, '--profile', profile, 'about:blank'], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ...variables },
  });
  const socket = new WebSocket(`${await address(child)}/session`);
  const waiting = new Map();
  const listeners = [];
  let number = 0;
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    const settle = waiting.get(message.id);
    waiting.delete(message.id);
    if (settle) settle(message);
    else listeners.forEach((listener) => listener(message));
  };
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = () => reject(new Error('Firefox does not answer'));
  });
  const send = (method, params = {}) => new Promise((resolve, reject) => {
    const id = ++number;
    waiting.set(id, (reply) => (reply.type === 'error' ? reject(new Error(`${method}: ${reply.message}`)) : resolve(reply.result)));
    socket.send(JSON.stringify({ id, method, params }));
  });
  await send('session.new', { capabilities: {} });
  await send('session.subscribe', { events: EVENTS });
  const { contexts } = await send('browsingContext.getTree', { 'moz:scope': 'chrome' });
  const prefer = (kind, name, value) => evaluate(send, contexts[0].context, `Services.prefs.set${kind}Pref('${name}', ${value})`);
  // Remote control lets pages of the disk read each other unless it is told not to.
  await prefer('Bool', 'security.fileuri.strict_origin_policy', true);
  const close = async () => {
    const gone = new Promise((resolve) => child.once('exit', resolve));
    await send('browser.close').catch(() => child.kill());
    await gone;
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return { close, tab: () => tab(send, listeners, prefer) };
}

// Where the browser listens, which it says once it does.
function address(child) {
  return new Promise((resolve, reject) => {
    let told = '';
    child.stderr.on('data', (chunk) => {
      told += chunk;
      const found = told.match(/WebDriver BiDi listening on (ws:\S+)/);
      if (found) resolve(found[1]);
    });
    child.once('exit', () => reject(new Error(`Firefox ended: ${told}`)));
  });
}

async function evaluate(send, context, expression) {
  const reply = await send('script.evaluate', { expression, target: { context }, awaitPromise: true });
  if (reply.type === 'exception') throw new Error(reply.exceptionDetails.text);
  return reply.result;
}

// A value as it was before it was sent. Pages without scripts run no promises, so it is not made text there.
function plain({ type, value }) {
  if (type === 'array') return value.map(plain);
  if (type === 'object') return Object.fromEntries(value.map(([name, one]) => [name, plain(one)]));
  return value;
}

async function tab(send, listeners, prefer) {
  const { context } = await send('browsingContext.create', { type: 'tab' });
  const [requests, errors] = [[], []];
  listeners.push(({ method, params }) => {
    if (method === 'network.beforeRequestSent' && params.context === context) requests.push(params.request.url);
    if (method === 'log.entryAdded' && params.source.context === context && params.level === 'error') errors.push(params.text);
  });
  return {
    requests,
    errors,
    async look(width, height, scheme, { scripts = true } = {}) {
      await send('browsingContext.setViewport', { context, viewport: { width, height }, devicePixelRatio: 1 });
      await prefer('Int', 'layout.css.prefers-color-scheme.content-override', scheme === 'dark' ? 0 : 1);
      await prefer('Bool', 'javascript.enabled', scripts);
    },
    go: (url) => send('browsingContext.navigate', { context, url, wait: 'complete' }),
    run: (program) => evaluate(send, context, program),
    evaluate: async (expression) => plain(await evaluate(send, context, expression)),
    press(key) {
      const value = key === 'Enter' ? '\uE007' : key;
      const strokes = [{ type: 'keyDown', value }, { type: 'keyUp', value }];
      return send('input.performActions', { context, actions: [{ type: 'key', id: 'keyboard', actions: strokes }] });
    },
    async picture() {
      const { data } = await send('browsingContext.captureScreenshot', { context, origin: 'document' });
      return Buffer.from(data, 'base64');
    },
    async print() {
      const { data } = await send('browsingContext.print', { context, background: true });
      return Buffer.from(data, 'base64');
    },
    close: () => send('browsingContext.close', { context }),
  };
}
