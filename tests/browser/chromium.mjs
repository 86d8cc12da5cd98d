// One headless Chromium, spoken to over two pipes: no client library, no port.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--hide-scrollbars', '--remote-debugging-pipe',
  // Letters fall on whole pixels, so that two pictures of one page are equal.
  '--font-render-hinting=none', '--disable-font-subpixel-positioning', '--force-device-scale-factor=1',
];

export async function open(binary, variables = {}) {
  const profile = mkdtempSync(join(tmpdir(), 'browser-'));
  const child = spawn(binary, [...FLAGS, `--user-data-dir=${profile}`, 'about:blank'], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...variables },
  });
  const waiting = new Map();
  const listeners = [];
  let number = 0;
  let rest = '';
  child.stdio[4].on('data', (chunk) => {
    const messages = (rest + chunk).split('\0');
    rest = messages.pop();
    for (const text of messages) {
      const message = JSON.parse(text);
      const settle = waiting.get(message.id);
      waiting.delete(message.id);
      if (settle) settle(message);
      else listeners.forEach((listener) => listener(message));
    }
  });
  const send = (method, params = {}, sessionId) => new Promise((resolve, reject) => {
    const id = ++number;
    waiting.set(id, (reply) => (reply.error ? reject(new Error(`${method}: ${reply.error.message}`)) : resolve(reply.result)));
    child.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + '\0');
  });
  const close = async () => {
    const gone = new Promise((resolve) => child.once('exit', resolve));
    await send('Browser.close').catch(() => child.kill());
    await gone;
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return { send, close, on: (listener) => listeners.push(listener), tab: () => tab(send, listeners) };
}

// A page of its own, with what it asks for written down.
async function tab(send, listeners) {
  const { targetId } = await send('Target.createTarget', { url: 'about:blank' });
  const { sessionId } = await send('Target.attachToTarget', { targetId, flatten: true });
  const call = (method, params) => send(method, params, sessionId);
  const [requests, errors] = [[], []];
  let loaded = null;
  listeners.push((message) => {
    if (message.sessionId !== sessionId) return;
    if (message.method === 'Network.requestWillBeSent') requests.push(message.params.request.url);
    if (message.method === 'Page.loadEventFired' && loaded) loaded();
    const { entry, exceptionDetails, type, args } = message.params;
    if (message.method === 'Log.entryAdded' && entry.level === 'error') errors.push(`${entry.text} ${entry.url ?? ''}`);
    if (message.method === 'Runtime.exceptionThrown') errors.push(exceptionDetails.exception?.description ?? exceptionDetails.text);
    if (message.method === 'Runtime.consoleAPICalled' && type === 'error') errors.push(args.map((one) => one.value).join(' '));
  });
  for (const domain of ['Page', 'Network', 'Log', 'Runtime']) await call(`${domain}.enable`);
  await call('Page.setBypassCSP', { enabled: true });
  const evaluate = async (expression) => {
    const reply = await call('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (reply.exceptionDetails) throw new Error(reply.exceptionDetails.exception?.description ?? reply.exceptionDetails.text);
    return reply.result.value;
  };
  return {
    requests,
    errors,
    call,
    async look(width, height, scheme, { scripts = true, media = '' } = {}) {
      await call('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false });
      await call('Emulation.setEmulatedMedia', { media, features: [{ name: 'prefers-color-scheme', value: scheme }] });
      await call('Emulation.setScriptExecutionDisabled', { value: !scripts });
    },
    async go(url) {
      const done = new Promise((resolve) => { loaded = resolve; });
      await call('Page.navigate', { url });
      await done;
    },
    run: evaluate,
    evaluate,
    async press(key) {
      const [name, text, code] = key === 'Enter' ? ['Enter', '\r', 13] : [key, key, key.toUpperCase().charCodeAt(0)];
      const stroke = { key: name, text, windowsVirtualKeyCode: code };
      await call('Input.dispatchKeyEvent', { type: 'keyDown', ...stroke });
      await call('Input.dispatchKeyEvent', { type: 'keyUp', ...stroke });
    },
    async picture({ whole = true, height = 12000 } = {}) {
      const { cssContentSize } = await call('Page.getLayoutMetrics');
      const clip = { x: 0, y: 0, width: cssContentSize.width, height: Math.min(cssContentSize.height, height), scale: 1 };
      const reply = await call('Page.captureScreenshot', whole ? { captureBeyondViewport: true, clip } : {});
      return Buffer.from(reply.data, 'base64');
    },
    async print() {
      const reply = await call('Page.printToPDF', { preferCSSPageSize: true, printBackground: true });
      return Buffer.from(reply.data, 'base64');
    },
    close: () => send('Target.closeTarget', { targetId }),
  };
}
