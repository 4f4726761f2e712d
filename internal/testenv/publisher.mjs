// A publisher as the neighbour is one: Node.js, four flat fields, the payload
// through JSON.stringify with a replacer. Written from the wire contract alone,
// without dependencies, so that the service is not only tested against itself.
//
//   node publisher.mjs HOST PORT STREAM COUNT SEED   adds COUNT entries to STREAM
//   node publisher.mjs --print-only COUNT SEED       adds nothing, prints the fields too
//
// Prints one line of JSON per record: what a reader has to make of it, big
// integers and bytes in stored form. "id" is the entry's ID, null if not added.

import net from 'node:net';
import { once } from 'node:events';

const MAXLEN = '1000000';
const DEPTH = 200; // commands on their way at once

const args = process.argv.slice(2);
const printOnly = args[0] === '--print-only';
const [host, port, stream, countText, seedText] = printOnly ? [, , , args[1], args[2]] : args;
const count = Number(countText);
const seed = BigInt(seedText ?? 1);
if (!Number.isSafeInteger(count) || count < 0 || (!printOnly && !stream)) {
  console.error('usage: publisher.mjs HOST PORT STREAM COUNT SEED | --print-only COUNT SEED');
  process.exit(2);
}

// splitmix64: the same records for the same seed everywhere.
let state = seed;
function next() {
  state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n);
  let z = state;
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}
const below = (n) => Number(next() % BigInt(n));
const bytes = (n) => Buffer.from(Array.from({ length: n }, () => below(256)));

const devices = 20;
const imei = (i) => String(86400000000000n * 10n + BigInt(i) * 7919n + seed % 1000n).padStart(15, '0');
const start = Date.UTC(2026, 0, 2, 3, 4, 5);

// One Position. Every device and time occurs once.
function position(i) {
  const codec = ['8', '8E', '16'][below(3)];
  const attributes = {};
  const put = (id, value) => { attributes[id] = value; };
  put('240', below(2));
  put('239', below(2));
  put('21', below(6));
  put('66', 11000 + below(4000));
  put('199', below(1 << 30));
  if (below(3) === 0) put('78', next());                                  // N8, the whole unsigned range
  if (below(4) === 0) put('10', BigInt.asIntN(64, next()));               // N8, signed
  if (below(20) === 0) put('11', [0n, -1n, 2n ** 63n - 1n, -(2n ** 63n), 2n ** 64n - 1n, 2n ** 53n + 1n][below(6)]);
  if (codec === '8E' && below(2) === 0) put('385', bytes(below(60)));     // NX
  if (codec === '16') put('__generation_type', below(8));
  if (below(50) === 0) put('note', ['plain', 'žalia Žiema', '"\\\b\f\n\r\t\u0001\u2028', '🏁'][below(4)]);
  const noFix = below(40) === 0;
  return {
    codec,
    position: {
      device_id: imei(i % devices),
      timestamp: new Date(start + Math.floor(i / devices) * 1000 + below(1000)),
      latitude: noFix ? 0 : (540000000 + below(20000000)) / 1e7,
      longitude: noFix ? 0 : (240000000 + below(20000000)) / 1e7 * (below(2) ? 1 : -1),
      altitude: below(3000) - 100,
      angle: below(361),
      speed: below(10) ? below(200) : below(2000) / 10,
      satellites: below(25),
      priority: below(100) === 0 ? 2 : below(2),
      attributes,
    },
  };
}

// Buffer.toJSON runs before the replacer sees the value: for bytes it has to
// look at the holder. Left alone, they print as the legacy shape.
function serialize(value, legacy) {
  return JSON.stringify(value, function replacer(key, val) {
    const raw = this[key];
    if (typeof raw === 'bigint') return { __bigint: raw.toString() };
    if (Buffer.isBuffer(raw) && !legacy) return { __buffer_b64: raw.toString('base64') };
    return val;
  });
}

// What the table has to hold.
function stored(value) {
  return JSON.stringify(value, function replacer(key, val) {
    const raw = this[key];
    if (typeof raw === 'bigint') return raw.toString();
    if (Buffer.isBuffer(raw)) return raw.toString('base64');
    return val;
  });
}

function entry(i) {
  const { codec, position: p } = position(i);
  const legacy = below(5) === 0;
  const fields = ['ts', p.timestamp.toISOString(), 'device_id', p.device_id, 'codec', codec, 'payload', serialize(p, legacy)];
  const expected = `{"codec":${JSON.stringify(codec)},` + stored(p).slice(1);
  return { fields, expected };
}

const line = (id, fields, expected) =>
  `{"id":${JSON.stringify(id)},${fields ? `"fields":${JSON.stringify(fields)},` : ''}${expected.slice(1)}\n`;

async function print(text) {
  if (!process.stdout.write(text)) await once(process.stdout, 'drain');
}

function command(words) {
  return `*${words.length}\r\n` + words.map((w) => `$${Buffer.byteLength(w)}\r\n${w}\r\n`).join('');
}

async function publish() {
  const socket = net.connect({ host, port: Number(port) });
  await once(socket, 'connect');
  const waiting = [];
  let rest = Buffer.alloc(0);
  let size = -1; // of the bulk string being read
  let failed = null;
  let wake = () => {};
  const fail = (error) => { failed ??= error; wake(); };
  socket.on('error', fail);
  socket.on('close', () => { if (waiting.length) fail(new Error('the server closed the connection')); });
  socket.on('data', (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    for (;;) {
      if (size < 0) {
        const end = rest.indexOf('\r\n');
        if (end < 0) break;
        const head = rest.toString('utf8', 0, end);
        rest = rest.subarray(end + 2);
        if (head[0] !== '$') return fail(new Error(`the server answered ${head}`));
        size = Number(head.slice(1));
      }
      if (rest.length < size + 2) break;
      const id = rest.toString('utf8', 0, size);
      rest = rest.subarray(size + 2);
      size = -1;
      process.stdout.write(line(id, null, waiting.shift()));
    }
    wake();
  });
  const until = async (done) => {
    while (!failed && !done()) await new Promise((resolve) => { wake = resolve; });
    if (failed) throw failed;
  };
  for (let i = 0; i < count; i++) {
    await until(() => waiting.length < DEPTH);
    const { fields, expected } = entry(i);
    waiting.push(expected);
    socket.write(command(['XADD', stream, 'MAXLEN', '~', MAXLEN, '*', ...fields]));
  }
  await until(() => waiting.length === 0);
  socket.end();
}

if (printOnly) {
  for (let i = 0; i < count; i++) {
    const { fields, expected } = entry(i);
    await print(line(null, fields, expected));
  }
} else {
  await publish();
}
