// WebKitGTK's small browser, spoken to in WebDriver over HTTP on a screen of its own (`webkit2gtk-driver` and `xvfb` of Debian).
// It tells neither what a page asks for nor what went wrong in it: requests are those that reach a proxy, which refuses all.
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';

// Wide enough for every page that is looked at: no window is wider than its screen.
const SCREEN = '-screen 0 1920x1400x24';
const LIBRARIES = '/usr/lib';

export async function open(binary, variables) {
  const seen = [];
  const proxy = await listening((socket) => {
    socket.on('error', () => {});
    socket.once('data', (head) => {
      seen.push(String(head).split('\r\n')[0]);
      socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
    });
  });
  // A browser of its own for each scheme, and one without scripts: they are given when it starts.
  const drivers = new Map();
  const driver = async (scheme, scripts) => {
    const flags = [scheme === 'dark' && '--dark-mode', !scripts && '--enable-javascript=false'].filter(Boolean);
    const key = flags.join(' ');
    if (!drivers.has(key)) {
      drivers.set(key, await start(binary, variables, [...flags, `--proxy=http://127.0.0.1:${proxy.address().port}`]));
    }
    return drivers.get(key);
  };
  const close = async () => {
    for (const one of drivers.values()) await one.close();
    proxy.close();
  };
  return { close, tab: () => tab(driver, seen) };
}

function listening(serve) {
  const server = createServer(serve);
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
}

// The browser lies beside the library, in a folder of the machine's kind and the library's version.
function miniBrowser() {
  for (const kind of readdirSync(LIBRARIES).filter((name) => name.endsWith('-linux-gnu'))) {
    const versions = readdirSync(join(LIBRARIES, kind)).filter((name) => name.startsWith('webkit2gtk-'));
    const found = versions.map((name) => join(LIBRARIES, kind, name, 'MiniBrowser')).find(existsSync);
    if (found) return found;
  }
  throw new Error(`there is no MiniBrowser below ${LIBRARIES}`);
}

// A driver with its one window.
async function start(binary, variables, flags) {
  // The driver takes no port of the system's choice, so it is given one that was free a moment ago.
  const probe = await listening(() => {});
  const { port } = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  const child = spawn('xvfb-run', ['-a', '-s', SCREEN, binary, `--port=${port}`, '--host=127.0.0.1'], {
    stdio: 'ignore',
    detached: true,
    env: { ...process.env, ...variables },
  });
  const send = async (method, path, body) => {
    const reply = await fetch(`http://127.0.0.1:${port}${path}`, { method, body: body && JSON.stringify(body) });
    const { value } = await reply.json();
    if (!reply.ok) throw new Error(`${path}: ${value.message || value.error}`);
    return value;
  };
  for (let tries = 0; ; tries += 1) {
    try {
      await send('GET', '/status');
      break;
    } catch (error) {
      if (tries === 100) throw error;
      await new Promise((resolve) => { setTimeout(resolve, 100); });
    }
  }
  // A window that fills the screen has no bars, which are wider than a phone.
  const options = { binary: miniBrowser(), args: ['--automation', '--full-screen', ...flags] };
  // A busy machine takes long for the largest page; what hangs is ended by whoever runs the tests.
  const wanted = { 'webkitgtk:browserOptions': options, timeouts: { script: 300_000, pageLoad: 300_000 } };
  const { sessionId } = await send('POST', '/session', { capabilities: { alwaysMatch: wanted } });
  const call = (method, path, body) => send(method, `/session/${sessionId}${path}`, body);
  const close = async () => {
    await call('DELETE', '').catch(() => {});
    process.kill(-child.pid);
  };
  return { call, close };
}

function tab(driver, seen) {
  let here;
  seen.length = 0;
  return {
    requests: seen,
    errors: [],
    async look(width, height, scheme, { scripts = true } = {}) {
      here = await driver(scheme, scripts);
      await here.call('POST', '/window/rect', { width, height });
    },
    go: (url) => here.call('POST', '/url', { url }),
    run: (script) => here.call('POST', '/execute/sync', { script, args: [] }),
    async evaluate(expression) {
      // Pages without scripts run no promises.
      const script = `const [done, made] = [arguments[0], ${expression}];
        const answer = (value) => done({ value: value ?? null });
        made instanceof Promise ? made.then(answer, (error) => done({ error: String(error) })) : answer(made);`;
      const { value, error } = await here.call('POST', '/execute/async', { script, args: [] });
      if (error) throw new Error(error);
      return value;
    },
    press(key) {
      const value = key === 'Enter' ? '\uE007' : key;
      const strokes = [{ type: 'keyDown', value }, { type: 'keyUp', value }];
      return here.call('POST', '/actions', { actions: [{ type: 'key', id: 'keyboard', actions: strokes }] });
    },
    picture: async () => Buffer.from(await here.call('GET', '/screenshot'), 'base64'),
    close() {},
  };
}
