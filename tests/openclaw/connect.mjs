// Who gets in, as what, and what he hears there.

import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { KEY, TOKEN, eventually } from "./house.mjs";
import { Device, Peer } from "./peer.mjs";
import { ANDROID, holds, keyed, operator, paired } from "./said.mjs";

/** A client that is refused: the error, how the connection was closed, and that it does not come again. */
async function turnedAway(room, options) {
  const peer = room.keep(new Peer(room.house, options));
  const error = await peer.refused();
  await eventually("a close", () => peer.closes.length);
  assert.equal(peer.hellos.length, 0);
  return { error, code: error.details?.code, paused: peer.paused.length, peer };
}

/** The code with which the gateway closes; the client's own reaction is not in it. */
function rawConnect(house, params) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(house.url);
    let answer;
    socket.once("error", reject);
    socket.on("message", (data) => {
      const frame = JSON.parse(data);
      if (frame.event === "connect.challenge") socket.send(JSON.stringify({ type: "req", id: "1", method: "connect", params }));
      else answer = frame;
    });
    socket.once("close", (code, reason) => resolve({ answer, code, reason: String(reason) }));
  });
}

const CLIENT = { id: "gateway-client", version: "1", platform: "linux", mode: "backend" };

/** What clients of gateways before this contract ask for. */
const OLDER = new Set(["sessions.unsubscribe"]);

export const checks = {
  async "an operator by the shared token is welcomed with everything that a client reads"(room) {
    const peer = await operator(room);
    const hello = peer.hellos[0];
    assert.equal(hello.protocol, 4);
    assert.deepEqual(hello.auth, { ...hello.auth, role: "operator", scopes: ["operator.admin"] });
    assert.equal(hello.policy.tickIntervalMs, 1000);
    assert.ok(hello.policy.maxPayload === 25 << 20 && hello.policy.maxBufferedBytes > 0, JSON.stringify(hello.policy));
    holds(hello.features.events, ["tick", "shutdown", "presence", "health", "chat", "agent"]);
    holds(hello.features.methods, [
      "health", "status", "system-presence", "node.list", "node.describe", "node.invoke", "node.pair.list",
      "device.pair.list", "device.pair.approve", "models.list", "chat.send", "chat.history", "chat.abort",
      "sessions.list", "sessions.usage", "usage.status", "usage.cost", "logs.tail", "config.get", "config.set",
      "config.patch", "config.apply", "config.schema", "wake", "agent", "agent.wait",
    ]);
    assert.ok(hello.snapshot.uptimeMs >= 0 && Array.isArray(hello.snapshot.presence));
    assert.ok((await peer.request("health")).ok !== false);
  },

  async "an operator by a key gets what the key allows, and is told so"(room) {
    const peer = await keyed(room, ["operator.read", "operator.write", "operator.admin"]);
    assert.deepEqual(peer.hellos[0].auth.scopes, ["operator.read", "operator.write"]);
    const error = await peer.error("config.patch", { raw: "{}", baseHash: "x" });
    assert.equal(error.gatewayCode, "FORBIDDEN");
    assert.deepEqual(error.details, { code: "MISSING_SCOPE", missingScope: "operator.admin", requiredScopes: ["operator.admin"] });
    assert.ok(error.message.includes("missing scope: operator.admin"), error.message);
  },

  async "every method asks for the scope that the contract names"(room) {
    const { methods } = (await operator(room)).hellos[0].features;
    const peer = await keyed(room, ["operator.read"]);
    assert.deepEqual(peer.hellos[0].auth.scopes, ["operator.read"]);
    const wrong = [];
    for (const method of methods) {
      const scope = room.recorder.schema.methods[method]?.scope;
      if (!scope?.startsWith("operator.") || ["operator.read"].includes(scope) || method === "connect") continue;
      const error = await peer.error(method, {}).catch((carried) => carried);
      if (error.details?.missingScope !== scope) wrong.push(`${method}: ${scope}, not ${error.details?.missingScope ?? error}`);
    }
    assert.deepEqual(wrong, []);
  },

  async "no method is invented"(room) {
    const { methods } = (await operator(room)).hellos[0].features;
    assert.ok(methods.length > 30, methods.join());
    const unknown = methods.filter((method) => !room.recorder.schema.methods[method] && !OLDER.has(method));
    assert.deepEqual(unknown, [], "methods that the contract does not have");
  },

  async "a wrong token, none, and a wrong password are told apart and not tried again"(room) {
    const wrong = await turnedAway(room, { token: "wrong" });
    assert.deepEqual([wrong.code, wrong.paused], ["AUTH_TOKEN_MISMATCH", 1]);
    const none = await turnedAway(room, {});
    assert.deepEqual([none.code, none.paused], ["AUTH_TOKEN_MISSING", 1]);
    const password = await turnedAway(room, { password: "wrong" });
    assert.ok(/^AUTH_PASSWORD_/.test(password.code), password.code);
    for (const { error } of [wrong, none, password]) {
      assert.ok(!error.message.includes(TOKEN) && !error.message.includes(KEY));
      assert.equal(error.gatewayCode, "INVALID_REQUEST");
    }
  },

  async "a wrong token is answered, then closed with 1008"(room) {
    const { answer, code, reason } = await rawConnect(room.house, {
      minProtocol: 4, maxProtocol: 4, client: CLIENT, auth: { token: "wrong" },
    });
    assert.equal(answer.ok, false);
    assert.equal(code, 1008, reason);
  },

  async "an operator that speaks version 3 only is told which is expected, and closed with 1002"(room) {
    const away = await turnedAway(room, { token: TOKEN, minProtocol: 3, maxProtocol: 3 });
    assert.deepEqual([away.code, away.error.details.expectedProtocol, away.paused], ["PROTOCOL_MISMATCH", 4, 1]);
    const { code } = await rawConnect(room.house, { minProtocol: 3, maxProtocol: 3, client: CLIENT, auth: { token: TOKEN } });
    assert.equal(code, 1002);
  },

  async "a node that speaks version 3 is welcome"(room) {
    const admin = await operator(room);
    const old = await paired(room, admin, { minProtocol: 3, maxProtocol: 3 });
    assert.equal(old.hellos[0].protocol, 3);
    const both = await paired(room, admin, { minProtocol: 3, maxProtocol: 4 });
    assert.equal(both.hellos[0].protocol, 4);
  },

  async "the node host that OpenClaw brings is welcome as it is"(room) {
    const admin = await operator(room);
    const host = await paired(room, admin, { clientName: "node-host", platform: process.platform, minProtocol: undefined });
    assert.equal(host.hellos[0].protocol, 4);
  },

  async "a probe speaks version 3 too"(room) {
    const peer = await operator(room, { mode: "probe", clientName: "openclaw-probe", minProtocol: 3, maxProtocol: 3 });
    assert.equal(peer.hellos.length, 1);
  },

  async "an unknown method is refused, and the connection lives"(room) {
    const peer = await operator(room);
    const error = await peer.error("no.such.method", {});
    assert.equal(error.gatewayCode, "INVALID_REQUEST");
    assert.ok(error.message.includes("unknown method: no.such.method"), error.message);
    await peer.request("health");
  },

  async "a node may not do what operators do, and an operator not what nodes do"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    for (const method of ["config.get", "chat.send", "node.list", "node.invoke"]) {
      const error = await peer.error(method, {});
      assert.ok(error.message.includes("unauthorized role"), `${method}: ${error.message}`);
    }
    const error = await admin.error("node.invoke.result", { id: "x", nodeId: "x", ok: true });
    assert.ok(error.message.includes("unauthorized role"), error.message);
  },

  async "a signature of another key, an old one, and one for another nonce are refused"(room) {
    const device = new Device();
    const other = new Device();
    const forged = await turnedAway(room, {
      ...ANDROID, device: { ...device, identity: device.identity, hostDeps: { ...device.hostDeps, signDevicePayload: (_, text) => other.sign(text) } }, token: TOKEN,
    });
    assert.equal(forged.code, "DEVICE_AUTH_SIGNATURE_INVALID");
    const swapped = await turnedAway(room, {
      ...ANDROID, token: TOKEN,
      device: { identity: { ...device.identity, deviceId: other.id }, hostDeps: device.hostDeps },
    });
    assert.equal(swapped.code, "DEVICE_AUTH_DEVICE_ID_MISMATCH");
  },

  async "ticks come on time, and presence follows who is there"(room) {
    const watcher = await operator(room, { clientDisplayName: "Watcher" });
    const before = watcher.events.length;
    const other = await operator(room, { clientName: "openclaw-macos", mode: "ui", clientDisplayName: "Other", instanceId: "other-1" });
    const there = (payload) => payload.presence.some((entry) => entry.instanceId === "other-1" && entry.reason !== "disconnect");
    await watcher.event("presence", there, before);
    const entry = (await watcher.request("system-presence")).find((entry) => entry.instanceId === "other-1");
    assert.deepEqual([entry.mode, entry.host !== undefined, entry.roles], ["ui", true, ["operator"]]);
    const after = watcher.events.length;
    await other.stop();
    await watcher.event("presence", (payload) => !there(payload), after);
    await eventually("three ticks", () => watcher.of("tick").length >= 3);
    assert.deepEqual([watcher.closes.length, watcher.gaps.length], [0, 0]);
  },
};
