// PNG files of 8 bits a channel without interlacing, as Chromium writes them, and small ones of our own.
import { deflateSync, inflateSync } from 'node:zlib';

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
// What the repository's checks for unfinished text look for, which compressed bytes may hold by chance.
const FORBIDDEN = [[88, 88, 88], [84, 79, 68, 79]].map((bytes) => Buffer.from(bytes));

// Width, height and the red, green and blue of each pixel.
export function decode(file) {
  if (!file.subarray(0, 8).equals(SIGNATURE)) throw new Error('no PNG file');
  const parts = [];
  let header;
  for (let at = 8; at < file.length; ) {
    const length = file.readUInt32BE(at);
    const body = file.subarray(at + 8, at + 8 + length);
    const type = file.toString('latin1', at + 4, at + 8);
    if (type === 'IHDR') header = body;
    if (type === 'IDAT') parts.push(body);
    at += length + 12;
  }
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const channels = { 2: 3, 6: 4 }[header[9]];
  if (header[8] !== 8 || !channels || header[12] !== 0) throw new Error('a kind of PNG that is not read here');
  const lines = inflateSync(Buffer.concat(parts));
  const stride = width * channels;
  const data = new Uint8Array(width * height * 3);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y += 1) {
    const start = y * (stride + 1);
    const line = unfiltered(lines[start], lines.subarray(start + 1, start + 1 + stride), above, channels);
    for (let x = 0; x < width; x += 1) {
      for (let c = 0; c < 3; c += 1) data[(y * width + x) * 3 + c] = line[x * channels + c];
    }
    above = line;
  }
  return { width, height, data };
}

// One line, of which each byte was written as its distance from a guess.
function unfiltered(filter, raw, above, channels) {
  const line = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) {
    const left = i >= channels ? line[i - channels] : 0;
    const corner = i >= channels ? above[i - channels] : 0;
    line[i] = raw[i] + [0, left, above[i], (left + above[i]) >> 1, paeth(left, above[i], corner)][filter];
  }
  return line;
}

function paeth(left, above, corner) {
  const guess = left + above - corner;
  const [a, b, c] = [left, above, corner].map((value) => Math.abs(guess - value));
  if (a <= b && a <= c) return left;
  return b <= c ? above : corner;
}

// The mean of every square of so many pixels, in steps of 8, which compress better than all 256 values.
export function shrink({ width, height, data }, cell) {
  const [columns, rows] = [Math.ceil(width / cell), Math.ceil(height / cell)];
  const small = new Uint8Array(columns * rows * 3);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const [right, bottom] = [Math.min(width, (column + 1) * cell), Math.min(height, (row + 1) * cell)];
      const sum = [0, 0, 0];
      for (let y = row * cell; y < bottom; y += 1) {
        for (let x = column * cell; x < right; x += 1) {
          for (let c = 0; c < 3; c += 1) sum[c] += data[(y * width + x) * 3 + c];
        }
      }
      const pixels = (right - column * cell) * (bottom - row * cell);
      sum.forEach((value, c) => { small[(row * columns + column) * 3 + c] = Math.min(255, Math.round(value / pixels / 8) * 8); });
    }
  }
  return { width: columns, height: rows, data: small };
}

// A PNG file whose bytes hold nothing that a check for unfinished text would find.
export function encode({ width, height, data }) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const lines = Buffer.alloc(height * (width * 3 + 1));
  for (let y = 0; y < height; y += 1) {
    lines.set(data.subarray(y * width * 3, (y + 1) * width * 3), y * (width * 3 + 1) + 1);
  }
  for (let level = 9; level > 0; level -= 1) {
    const parts = [chunk('IHDR', header), chunk('IDAT', deflateSync(lines, { level })), chunk('IEND', Buffer.alloc(0))];
    const file = Buffer.concat([SIGNATURE, ...parts]);
    if (!FORBIDDEN.some((bytes) => file.includes(bytes))) return file;
  }
  throw new Error('every way to compress this picture gives bytes that a check forbids');
}

function chunk(type, body) {
  const named = Buffer.concat([Buffer.from(type, 'latin1'), body]);
  const framed = Buffer.alloc(named.length + 8);
  framed.writeUInt32BE(body.length, 0);
  named.copy(framed, 4);
  framed.writeUInt32BE(crc(named), named.length + 4);
  return framed;
}

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit += 1) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return (value ^ 0xffffffff) >>> 0;
}
