// Sees every message that any `ws` socket of this process receives, and holds it against the protocol's
// own schema: the frame, and what is in it where the schema (or the table below) says how that looks.
// The clients are not changed for it: it stands between the socket and its listeners.

import fs from "node:fs";
import Ajv from "ajv";
import { WebSocket } from "ws";

const SCHEMA = new URL("node_modules/@openclaw/gateway-protocol/protocol.schema.json", import.meta.url);

/** Where an event's payload is described. Those without a line are counted as not described. */
const definition = (name) => ({ $ref: `protocol#/definitions/${name}` });
const whole = { type: "integer", minimum: 0 };
const EVENTS = {
  "connect.challenge": {
    type: "object",
    required: ["nonce", "ts"],
    properties: { nonce: { type: "string", minLength: 1 }, ts: whole },
    additionalProperties: false,
  },
  tick: definition("TickEvent"),
  shutdown: definition("ShutdownEvent"),
  chat: definition("ChatEvent"),
  agent: definition("AgentEvent"),
  presence: {
    type: "object",
    required: ["presence"],
    properties: { presence: { type: "array", items: definition("PresenceEntry"), maxItems: 200 } },
  },
  "node.invoke.request": definition("NodeInvokeRequestEvent"),
  "node.invoke.input": definition("NodeInvokeInputEvent"),
  "device.pair.requested": definition("DevicePairRequestedEvent"),
  "device.pair.resolved": definition("DevicePairResolvedEvent"),
};

/** Where an answer is described, when it is not the definition named after its method. */
const RESULTS = {
  connect: definition("HelloOk"),
  "system-presence": { type: "array", items: definition("PresenceEntry") },
  "sessions.list": {
    type: "object",
    required: ["sessions"],
    properties: { sessions: { type: "array", items: definition("SessionRow") } },
  },
  "agent.identity.get": definition("AgentIdentityResult"),
};

/** Codes of `error.details` that the schema describes. */
const DETAILS = new Set([
  "CRON_JOB_NOT_FOUND", "MISSING_SCOPE", "MCP_APP_VIEW_EXPIRED", "OUTBOUND_DELIVERY_QUEUED",
  "USER_PREFS_LIMIT_EXCEEDED", "SKILL_PROPOSAL_REVISION_CHANGED", "PROJECT_CLONE_FAILED",
  "UNKNOWN_AGENT_ID", "WIZARD_NOT_FOUND", "SETUP_ADMISSION_BUSY",
]);

/** `config.schema.lookup` -> `ConfigSchemaLookup`. */
export function camel(method) {
  return method.split(/[.-]/).map((word) => word[0].toUpperCase() + word.slice(1)).join("");
}

/** Sockets that another recorder than the installed one looks at. */
const elsewhere = new WeakMap();

export class Recorder {
  constructor() {
    this.schema = JSON.parse(fs.readFileSync(SCHEMA, "utf8"));
    this.ajv = new Ajv({ strict: false, validateSchema: false, validateFormats: false });
    this.ajv.addSchema(this.schema, "protocol");
    // The schema describes health only as a part of the welcome, where nothing may be added to it.
    const { additionalProperties: _, ...health } = this.schema.definitions.Snapshot.properties.health;
    this.events = { ...EVENTS, health };
    this.results = { ...RESULTS, health };
    this.validators = new Map();
    this.frames = 0;
    this.payloads = 0;
    this.answers = 0;
    this.gaps = 0;
    this.faults = [];
    /** name -> how often, for what the schema describes and what it does not. */
    this.described = new Map();
    this.undescribed = new Map();
    this.codes = new Map();
    /** socket -> what was asked on it, and what came back. */
    this.sockets = new WeakMap();
    this.all = [];
  }

  /** Looks at every socket of this process from now on. */
  install() {
    const of = (socket) => (socket._isServer ? null : elsewhere.get(socket) ?? this);
    const { emit, send } = WebSocket.prototype;
    WebSocket.prototype.emit = function (name, ...args) {
      if (name === "message") of(this)?.received(this, args[0], args[1]);
      if (name === "close") of(this)?.closed(this, args[0], String(args[1]));
      return emit.call(this, name, ...args);
    };
    WebSocket.prototype.send = function (data, ...rest) {
      of(this)?.sent(this, data);
      return send.call(this, data, ...rest);
    };
    return this;
  }

  /** Looks at this socket instead of the installed one. */
  watch(socket) {
    elsewhere.set(socket, this);
    return socket;
  }

  closed(socket, code, reason) {
    this.socket(socket).closed = { code, reason };
  }

  socket(socket) {
    let known = this.sockets.get(socket);
    if (!known) {
      known = { asked: new Map(), answered: new Map(), perhaps: new Set(), nonsense: 0, seq: null, closed: null };
      this.sockets.set(socket, known);
      this.all.push(known);
    }
    return known;
  }

  /** This text, which is sent next, may be a request or nonsense: it may be answered once, as either. */
  perhaps(socket, text) {
    const known = this.socket(socket);
    let frame = null;
    try {
      frame = JSON.parse(text);
    } catch {}
    if (typeof frame?.id === "string") known.perhaps.add(frame.id);
    known.nonsense += 1;
    known.next = true;
  }

  sent(socket, data) {
    const known = this.socket(socket);
    if (known.next) return void (known.next = false);
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      frame = null;
    }
    if (frame?.type === "req" && typeof frame.id === "string" && typeof frame.method === "string") {
      const { asked } = known;
      asked.set(frame.id, { method: frame.method, params: frame.params, times: (asked.get(frame.id)?.times ?? 0) + 1 });
    } else {
      known.nonsense += 1;
    }
  }

  received(socket, data, binary) {
    this.frames += 1;
    if (binary) return this.fault("a binary message", data.length);
    const text = data.toString("utf8");
    try {
      this.frame(this.socket(socket), JSON.parse(text), text);
    } catch (error) {
      this.fault(`not JSON: ${error.message}`, text);
    }
  }

  frame(known, frame, text) {
    const kind = { res: "ResponseFrame", event: "EventFrame" }[frame?.type];
    if (!kind) return this.fault("neither an answer nor an event", text);
    if (!this.valid(kind, definition(kind), frame, text)) return;
    if (kind === "EventFrame") this.event(known, frame, text);
    else this.answer(known, frame, text);
  }

  event(known, frame, text) {
    if (frame.seq !== undefined) {
      if (known.seq !== null && frame.seq <= known.seq) this.fault(`seq ${frame.seq} after ${known.seq}`, text);
      if (known.seq !== null && frame.seq > known.seq + 1) this.gaps += 1;
      known.seq = frame.seq;
    } else if (frame.event !== "connect.challenge") {
      this.fault("an event without seq", text);
    }
    this.payload(`event ${frame.event}`, this.events[frame.event], frame.payload, text);
  }

  answer(known, frame, text) {
    this.answers += 1;
    if (!known.asked.has(frame.id) && (frame.id === "invalid" ? known.nonsense-- > 0 : known.perhaps.delete(frame.id))) {
      return frame.ok === Boolean(frame.error) ? this.fault("ok and error do not agree", text) : undefined;
    }
    const asked = known.asked.get(frame.id);
    if (!asked) return this.fault("an answer to nobody", text);
    const times = (known.answered.get(frame.id) ?? 0) + 1;
    known.answered.set(frame.id, times);
    // A run that was accepted is answered again when it is over.
    const first = known.accepted?.has(frame.id) ? 1 : 0;
    if (times > asked.times + first) this.fault(`answered ${times} times`, text);
    if (frame.ok && frame.payload?.status === "accepted") (known.accepted ??= new Set()).add(frame.id);
    if (frame.ok === Boolean(frame.error)) return this.fault("ok and error do not agree", text);
    if (!frame.ok) return this.error(frame.error, text);
    this.payload(`method ${asked.method}`, this.result(asked), frame.payload, text);
  }

  result({ method, params }) {
    if (this.results[method]) return this.results[method];
    if (method === "chat.history" && typeof params?.cursor === "string") return definition("ChatHistoryCursorResult");
    const name = ["Result", "Response"].map((end) => camel(method) + end).find((name) => this.schema.definitions[name]);
    return name && definition(name);
  }

  error(error, text) {
    const code = error.details?.code ? `${error.code}/${error.details.code}` : error.code;
    count(this.codes, code);
    if (DETAILS.has(error.details?.code)) {
      this.payloads += 1;
      this.valid("details of an error", definition("GatewayErrorDetails"), error.details, text);
    }
  }

  payload(what, schema, payload, text) {
    count(schema ? this.described : this.undescribed, what);
    if (!schema) return;
    this.payloads += 1;
    this.valid(what, schema, payload, text);
  }

  valid(what, schema, value, text) {
    const key = JSON.stringify(schema);
    let validate = this.validators.get(key);
    if (!validate) this.validators.set(key, (validate = this.ajv.compile(schema)));
    if (validate(value)) return true;
    const where = validate.errors.map((e) => `${e.instancePath || "/"} ${e.message} ${JSON.stringify(e.params)}`);
    this.fault(`${what}: ${where.slice(0, 3).join("; ")}`, text);
    return false;
  }

  fault(what, text) {
    this.faults.push(`${what}\n    ${String(text).slice(0, 600)}`);
  }

  /** Requests on sockets that are still open and have had no answer. */
  unanswered() {
    const open = this.all.filter((known) => !known.closed);
    return open.flatMap((known) =>
      [...known.asked].filter(([id, { times }]) => (known.answered.get(id) ?? 0) < times).map(([, { method }]) => method),
    );
  }
}

export function count(map, key, by = 1) {
  map.set(key, (map.get(key) ?? 0) + by);
}
