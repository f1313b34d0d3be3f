// Frames that nobody would send: 10,000 of them, of every kind. Each request is answered once, nothing
// panics, and nothing stays behind. A failure is repeated with the seed that is printed.

import assert from "node:assert/strict";
import fs from "node:fs";
import { WebSocket } from "ws";
import { camel, count } from "./frames.mjs";
import { House, TOKEN, eventually } from "./house.mjs";
import { answering, keyed, operator, paired } from "./said.mjs";

const FRAMES = Number(process.env.TIDEGATE_FUZZ_FRAMES ?? 10000);
const SEED = Number(process.env.TIDEGATE_FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 31));
/** What would end the test or the gateway as it is meant to. */
const LEFT_OUT = new Set(["connect", "gateway.restart.request", "device.pair.remove", "device.token.revoke", "node.pair.remove"]);
/** Requests on one connection that are not answered yet. */
const WINDOW = 40;

/** Small, fast and repeatable (mulberry32). */
function dice(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (n) => Math.floor(next() * n);
  return { next, below, one: (list) => list[below(list.length)], odds: (p) => next() < p };
}

const STRINGS = [
  "", " ", "\u0000", "\u202e", "ü", "𝄞", "null", "../../etc/passwd", "%s%n", "{}", "main", "agent:main:main", "'; drop table x; --",
  "a".repeat(300), "ü".repeat(5000), "\ufffd\ufffe\uffff", "\"\\\n\r\t", "1e999", "-1", "__proto__", "constructor",
];
const NUMBERS = [0, -0, -1, 1, 0.5, 1e308, -1e308, 2 ** 31, 2 ** 53, -(2 ** 63), 2 ** 64, 4294967296, 1e-300, 200];

/** Any value, at most a few levels deep. */
function anything(random, depth = 0) {
  switch (random.below(depth > 3 ? 4 : 6)) {
    case 0: return null;
    case 1: return random.odds(0.5);
    case 2: return random.one(NUMBERS);
    case 3: return random.one(STRINGS);
    case 4: return Array.from({ length: random.below(5) }, () => anything(random, depth + 1));
    default: return Object.fromEntries(Array.from({ length: random.below(5) }, () => [random.one(STRINGS), anything(random, depth + 1)]));
  }
}

/** A value that a schema takes, as often as not at a limit of it. */
function fitting(random, schema, root, known, name = "", depth = 0) {
  if (!schema || typeof schema !== "object" || depth > 6) return anything(random, depth);
  if (schema.$ref) return fitting(random, root.definitions[schema.$ref.split("/").pop()], root, known, name, depth);
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return random.one(schema.enum);
  const choice = schema.anyOf ?? schema.oneOf;
  if (choice) return fitting(random, random.one(choice), root, known, name, depth + 1);
  const known_ = known[name];
  switch (schema.type) {
    case "object": {
      const all = Object.entries(schema.properties ?? {});
      const required = new Set(schema.required ?? []);
      const taken = all.filter(([field]) => required.has(field) || /timeout/i.test(field) || random.odds(0.25));
      return Object.fromEntries(taken.map(([field, part]) => [field, fitting(random, part, root, known, field, depth + 1)]));
    }
    case "array": return Array.from({ length: random.below(4) }, () => fitting(random, schema.items, root, known, name, depth + 1));
    case "string":
      if (known_ && random.odds(0.7)) return random.one(known_);
      return random.one(STRINGS).padEnd(schema.minLength ?? 0, "x").slice(0, schema.maxLength);
    // Short waits, so that every answer comes while the test looks.
    case "integer": return /timeout|delay/i.test(name) ? random.below(200) : random.one([schema.minimum ?? 0, 1, 7, 1000, 2 ** 53]);
    case "number": return random.one(NUMBERS);
    case "boolean": return random.odds(0.5);
    case "null": return null;
    default: return anything(random, depth);
  }
}

/** Breaks one thing in what fits. */
function broken(random, value) {
  if (value === null || typeof value !== "object" || random.odds(0.1)) return anything(random);
  const copy = Array.isArray(value) ? [...value] : { ...value };
  const fields = Object.keys(copy);
  if (!fields.length || random.odds(0.2)) copy[random.one(STRINGS)] = anything(random);
  else {
    const field = random.one(fields);
    // Never without: what waits is to be over while the test looks.
    if (/timeout/i.test(field)) copy[field] = random.one([-1, "1", 0.5, 1e308, true, {}]);
    else if (random.odds(0.25)) delete copy[field];
    else copy[field] = random.odds(0.5) ? broken(random, copy[field]) : anything(random);
  }
  return copy;
}

/** Text that is a frame of sorts; `id` is set when it has a right to an answer. */
function frame(random, id, methods, root, known) {
  const method = random.one(methods);
  const right = () => fitting(random, root.definitions[`${camel(method)}Params`], root, known);
  const request = (params, more = {}) => ({ text: JSON.stringify({ type: "req", id, method, params, ...more }), id });
  const kind = random.below(100);
  if (kind < 35) return request(broken(random, right()));
  if (kind < 65) return request(right());
  if (kind < 75) return request(anything(random));
  if (kind < 80) return request(undefined, { traceparent: anything(random), extra: anything(random) });
  if (kind < 84) return { text: JSON.stringify({ type: "req", id, method: random.one(STRINGS) || "x", params: anything(random) }), id };
  if (kind < 88) {
    const deep = 50 + random.below(20000);
    const [open, close] = random.one([["[", "]"], ['{"a":', "}"]]);
    return { text: `{"type":"req","id":"${id}","method":"${method}","params":${open.repeat(deep)}1${close.repeat(deep)}}`, id };
  }
  if (kind < 91) return { text: `{"type":"req","id":"${id}","method":"${method}","params":{"a":1e99999,"b":-0.0e-9999,"a":{"a":[]}}}`, id };
  if (kind < 95) return { text: JSON.stringify({ type: "cancel", id: random.odds(0.5) ? id : anything(random) }) };
  return { text: nonsense(random, id, method), nonsense: true };
}

function nonsense(random, id, method) {
  const text = JSON.stringify({ type: "req", id, method, params: anything(random) });
  return random.one([
    () => text.slice(0, random.below(text.length)),
    () => JSON.stringify(anything(random)),
    () => JSON.stringify({ type: random.one(["res", "event", "REQ", "", 1, null]), id, method, ok: true, payload: {} }),
    () => JSON.stringify({ type: "req", id: anything(random), method: random.odds(0.5) ? method : anything(random) }),
    () => JSON.stringify({ type: "req", id: "x".repeat(257 + random.below(60000)), method }),
    () => `{"type":"req","id":"${id}","method":"${method}","params":"\\ud800"}`,
    () => `{"type":"req","id":"${id}","type":"req","id":"${id}","method":"${method}"}`,
    () => `\ufeff${text}`,
    () => `${text}${text}`,
    () => "[".repeat(100000),
    () => " ".repeat(1 + random.below(60000)),
  ])();
}

/** A connection that was let in, without the manners of the reference client. */
async function open(house, connect) {
  const socket = new WebSocket(house.url);
  const line = { socket, waiting: new Map(), closed: null, wake: () => {} };
  const ready = new Promise((resolve, reject) => {
    socket.on("message", (data) => {
      const got = JSON.parse(data);
      if (got.event === "connect.challenge") socket.send(JSON.stringify({ type: "req", id: "hello", method: "connect", params: connect }));
      if (got.type !== "res") return;
      if (got.id === "hello") got.ok ? resolve() : reject(new Error(JSON.stringify(got.error)));
      line.waiting.delete(got.id);
      line.wake();
    });
    socket.on("close", (code, reason) => {
      line.closed = { code, reason: String(reason) };
      line.wake();
      reject(new Error(`closed ${code} ${reason}`));
    });
    socket.on("error", () => {});
  });
  await ready;
  return line;
}

const CONNECT = {
  minProtocol: 4, maxProtocol: 4, role: "operator", scopes: ["operator.admin"], auth: { token: TOKEN },
  client: { id: "test", version: "1", platform: "linux", mode: "test" },
};

/** Sends `frames` frames; counts what was sent, and how connections ended. */
async function storm(room, house, random, frames, methods, known) {
  const { schema } = room.recorder;
  const ends = new Map();
  let line = null;
  let number = 0;
  for (let sent = 0; sent < frames; sent += 1) {
    if (!line || line.closed) line = await open(house, CONNECT);
    const id = `f${(number += 1)}`;
    const next = frame(random, id, methods, schema, known);
    if (next.id) line.waiting.set(next.id, next.text);
    if (next.nonsense) room.recorder.perhaps(line.socket, next.text);
    line.socket.send(next.text);
    await until(line, () => line.closed || line.waiting.size < WINDOW);
    if (line.closed) count(ends, `${line.closed.code} ${line.closed.reason}`);
  }
  await until(line, () => line.closed || line.waiting.size === 0);
  line.socket.close();
  return ends;
}

async function until(line, condition) {
  if (condition()) return;
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`not answered: ${[...line.waiting.values()].map((text) => text.slice(0, 300)).slice(0, 5)}`)), 30000);
    line.wake = () => {
      if (!condition()) return;
      clearTimeout(late);
      line.wake = () => {};
      resolve();
    };
    line.wake();
  });
}

async function quiet(house) {
  await eventually("nothing under way", async () => {
    const now = await Promise.all(["nodes.connections_max", "nodes.pending_max", "nodes.runs_max"].map((limit) =>
      house.metric("tidegate_limit_now", `limit="${limit}"`)));
    return now.every((value) => value === 0);
  }, 20);
}

export const checks = {
  async [`${FRAMES} frames that nobody would send: answered once each, no panic, nothing left behind`](room) {
    const folder = fs.mkdtempSync(`${room.house.folder}/fuzz-`);
    const house = await House.build(room.house.program, folder);
    await house.start();
    const own = { ...room, house, keep: room.keep };
    try {
      const admin = await operator(own);
      const { methods } = admin.hellos[0].features;
      const peer = await paired(own, admin);
      answering(peer, (command, params) => (params === undefined ? null : { ok: true, payload: { command, params } }));
      const known = {
        nodeId: [peer.device.id], deviceId: [peer.device.id], sessionKey: ["main", "fuzz"], key: ["main", "fuzz"],
        command: ["device.info"], model: ["default"], role: ["node"],
      };
      const asked = methods.filter((method) => !LEFT_OUT.has(method));
      const ends = new Map();
      const memory = [];
      // Twice the same amount: what the first half needed once, the second does not need again.
      for (const half of [0, 1]) {
        const lines = [0, 1, 2, 3].map((n) => storm(own, house, dice(SEED + half * 4 + n), FRAMES / 8, asked, known));
        for (const some of await Promise.all(lines)) for (const [end, times] of some) count(ends, end, times);
        memory.push(house.memory());
      }
      const list = [...ends].map(([end, times]) => `${end} x${times}`).join(", ");
      console.log(`openclaw fuzz: seed ${SEED}; memory ${memory.map((bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`).join(", then ")}; connections closed: ${list}`);
      assert.equal(await house.metric("tidegate_panics_total"), 0);
      assert.ok([...ends.keys()].every((end) => /^(1008|1007|1009|1002) /.test(end)), list);
      await admin.request("health");
      assert.deepEqual(room.recorder.unanswered(), []);
      assert.ok(memory[1] < memory[0] * 1.2 + (4 << 20), `memory grew: ${memory}`);
      await Promise.all([admin.stop(), peer.stop()]);
      await quiet(house);
    } catch (error) {
      error.message += ` (TIDEGATE_FUZZ_SEED=${SEED})\n${house.lastLines()}`;
      throw error;
    } finally {
      await house.stop();
    }
  },

  async "a stranger's first frames are refused before anything is read from them"(room) {
    const random = dice(SEED);
    const ends = new Map();
    for (let n = 0; n < 200; n += 1) {
      const socket = new WebSocket(room.house.url);
      socket.on("error", () => {});
      socket.once("message", () => socket.send(n % 2 ? nonsense(random, "1", "connect")
        : JSON.stringify({ type: "req", id: "1", method: "connect", params: broken(random, structuredClone({ ...CONNECT, auth: { token: "no" } })) })));
      const { code, reason } = await new Promise((resolve) => socket.once("close", (code, reason) => resolve({ code, reason: String(reason) })));
      count(ends, String(code));
      assert.ok([1002, 1008, 1009].includes(code), `${code} ${reason}`);
    }
    assert.equal(await room.house.metric("tidegate_panics_total"), 0);
    await (await keyed(room)).request("health");
  },
};
