// Nodes: listed, described, invoked, and what comes back when they cannot.

import assert from "node:assert/strict";
import { eventually, sleep } from "./house.mjs";
import { answering, invoke, keyed, operator, paired } from "./said.mjs";

const info = (_command, params) => ({ ok: true, payload: { model: "Pocket 9", params } });

export const checks = {
  async "a node is listed and described while it is there, and as gone afterwards"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin, { clientDisplayName: "Shelf" });
    const row = () => admin.request("node.list", {}).then(({ nodes }) => nodes.find((node) => node.nodeId === peer.device.id));
    const there = await row();
    assert.deepEqual([there.connected, there.displayName, there.platform], [true, "Shelf", "android"]);
    const described = await admin.request("node.describe", { nodeId: peer.device.id });
    assert.deepEqual([described.nodeId, described.connected], [peer.device.id, true]);
    assert.deepEqual([...described.commands].sort(), ["camera.list", "device.info", "device.status"]);
    await peer.stop();
    const gone = await eventually("gone", async () => {
      const now = await row();
      return now.connected ? null : now;
    });
    assert.equal(typeof gone.lastSeenAtMs, "number");
    const error = await admin.error("node.describe", { nodeId: "nobody" });
    assert.equal(error.gatewayCode, "INVALID_REQUEST");
  },

  async "a command is invoked and its result comes back"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    answering(peer, info);
    const result = await admin.request("node.invoke", invoke(peer.device.id, "device.info", { deep: [1, "ü", null] }));
    assert.equal(result.ok, true);
    assert.equal(result.nodeId, peer.device.id);
    assert.equal(result.command, "device.info");
    assert.deepEqual(result.payload, { model: "Pocket 9", params: { deep: [1, "ü", null] } });
    // Another account's operator may do so too; nodes belong to the gateway.
    const laptop = await keyed(room);
    assert.equal((await laptop.request("node.invoke", invoke(peer.device.id, "device.info"))).payload.model, "Pocket 9");
  },

  async "a payload given as text comes back as text and as what it says"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    answering(peer, () => ({ ok: true, payloadJSON: '{"list":[1,2]}' }));
    const { payload } = await admin.request("node.invoke", invoke(peer.device.id, "device.info"));
    assert.deepEqual(payload, { list: [1, 2] });
  },

  async "a megabyte there and back"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    answering(peer, info);
    const big = "x".repeat(1 << 20);
    const { payload } = await admin.request("node.invoke", invoke(peer.device.id, "device.info", { big }));
    assert.equal(payload.params.big, big);
  },

  async "the node's own error comes back as it said it"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    answering(peer, () => ({ ok: false, error: { code: "CAMERA_BUSY", message: "somebody films" } }));
    const error = await admin.error("node.invoke", invoke(peer.device.id, "camera.list"));
    assert.equal(error.gatewayCode, "UNAVAILABLE");
    assert.ok(error.message.includes("somebody films"), error.message);
    assert.equal(error.details.nodeError.code, "CAMERA_BUSY");
  },

  async "a node that says nothing is waited for as long as was asked"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    const before = Date.now();
    const error = await admin.error("node.invoke", invoke(peer.device.id, "device.info", {}, { timeoutMs: 300 }));
    assert.ok(Date.now() - before >= 290);
    assert.ok(JSON.stringify([error.gatewayCode, error.details]).includes("TIMEOUT"), `${error} ${JSON.stringify(error.details)}`);
    // What comes too late is no one's answer, and the connection lives.
    const { id, nodeId } = peer.of("node.invoke.request")[0].payload;
    await peer.request("node.invoke.result", { id, nodeId, ok: true, payload: 1 });
    await admin.request("health");
  },

  async "a node that goes fails what waits for it at once"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    const waiting = admin.error("node.invoke", invoke(peer.device.id, "device.info", {}, { timeoutMs: 60000 }));
    await peer.event("node.invoke.request");
    await peer.stop();
    const error = await waiting;
    assert.ok(JSON.stringify([error.gatewayCode, error.details]).includes("NOT_CONNECTED"), `${error} ${JSON.stringify(error.details)}`);
    const later = await admin.error("node.invoke", invoke(peer.device.id, "device.info"));
    assert.ok(JSON.stringify([later.gatewayCode, later.details]).includes("NOT_CONNECTED"), JSON.stringify(later.details));
  },

  async "a command that was not offered is refused, and the node is not asked"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    await admin.error("node.invoke", invoke(peer.device.id, "system.run", { command: ["id"] }));
    assert.deepEqual(peer.of("node.invoke.request"), []);
  },

  async "the same idempotency key asks the node once"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    let asked = 0;
    answering(peer, () => ({ ok: true, payload: (asked += 1) }));
    const same = invoke(peer.device.id, "device.info");
    const answers = await Promise.all([1, 2, 3].map(() => admin.request("node.invoke", same)));
    answers.push(await admin.request("node.invoke", same));
    assert.deepEqual(answers.map(({ payload }) => payload), [1, 1, 1, 1]);
    assert.equal(asked, 1);
  },

  async "node events are taken, known ones handled and others told"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    const alive = await peer.request("node.event", { event: "node.presence.alive", payloadJSON: '{"trigger":"background"}' });
    assert.deepEqual([alive.ok, alive.event, alive.handled], [true, "node.presence.alive", true]);
    const other = await peer.request("node.event", { event: "nobody.knows", payload: {} });
    assert.deepEqual([other.ok, other.handled], [true, false]);
  },

  async "many commands at once come back each to its own"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    peer.answering = async (event) => {
      if (event.event !== "node.invoke.request") return;
      const { id, nodeId, paramsJSON } = event.payload;
      await sleep(Math.random() * 50);
      peer.request("node.invoke.result", { id, nodeId, ok: true, payload: JSON.parse(paramsJSON).n }).catch(() => {});
    };
    const numbers = [...Array(100).keys()];
    const answers = await Promise.all(numbers.map((n) => admin.request("node.invoke", invoke(peer.device.id, "device.info", { n }))));
    assert.deepEqual(answers.map(({ payload }) => payload), numbers);
  },
};
