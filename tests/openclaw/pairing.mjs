// Devices: asked, approved, known again, and gone.

import assert from "node:assert/strict";
import { TOKEN, eventually } from "./house.mjs";
import { Device } from "./peer.mjs";
import { node, operator, paired } from "./said.mjs";

export const checks = {
  async "a device waits to be paired, `tidegate devices approve` lets it in, and its token brings it back"(room) {
    const { house } = room;
    const admin = await operator(room);
    const device = new Device();
    const asking = node(room, device);
    const error = await asking.refused();
    assert.equal(error.gatewayCode, "NOT_PAIRED");
    const { code, requestId, reason } = error.details;
    assert.deepEqual([code, reason], ["PAIRING_REQUIRED", "not-paired"]);
    const asked = await admin.event("device.pair.requested", (event) => event.requestId === requestId);
    assert.deepEqual([asked.payload.deviceId, asked.payload.role, asked.payload.displayName], [device.id, "node", "Pocket"]);

    assert.ok((await house.command("devices", "list")).includes("Pocket"));
    await house.command("devices", "approve", requestId);
    const resolved = await admin.event("device.pair.resolved", (event) => event.requestId === requestId);
    assert.deepEqual([resolved.payload.deviceId, resolved.payload.decision], [device.id, "approved"]);

    // It comes again by itself until then.
    const hello = await asking.welcomed();
    assert.deepEqual([asking.paused, hello.auth.role], [[], "node"]);
    const { token } = device.tokens.get("node");
    assert.equal(hello.auth.deviceToken, token);
    await asking.stop();

    // From now on without the shared token.
    const again = node(room, device, { token: undefined });
    await again.welcomed();
    assert.deepEqual(again.errors, []);
    const listed = await admin.request("device.pair.list");
    assert.ok(!JSON.stringify(listed).includes(token), "a device token in a list");
    assert.ok(listed.paired.some((row) => row.deviceId === device.id), JSON.stringify(listed));
  },

  async "an operator approves with device.pair.approve, and rejects with device.pair.reject"(room) {
    const admin = await operator(room);
    const device = new Device();
    const asking = node(room, device);
    const { requestId } = (await asking.refused()).details;
    const { pending } = await admin.request("device.pair.list");
    assert.ok(pending.some((row) => row.requestId === requestId && row.deviceId === device.id), JSON.stringify(pending));
    await asking.stop();
    await admin.request("device.pair.approve", { requestId });
    const welcome = node(room, device);
    await welcome.welcomed();

    const unwanted = new Device();
    const second = node(room, unwanted);
    const refused = (await second.refused()).details.requestId;
    await second.stop();
    await admin.request("device.pair.reject", { requestId: refused });
    const error = await admin.error("device.pair.approve", { requestId: refused });
    assert.equal(error.gatewayCode, "INVALID_REQUEST");
    assert.equal((await node(room, unwanted).refused()).gatewayCode, "NOT_PAIRED");
  },

  async "a device that is removed is closed at once, and its token is worth nothing"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    // The next connection shows the device token, not the shared one.
    await peer.stop();
    const again = node(room, peer.device, { token: undefined });
    await again.welcomed();
    await admin.request("device.pair.remove", { deviceId: peer.device.id });
    const { code } = await eventually("a close", () => again.closes[0]);
    assert.equal(code, 1008);
    await eventually("a refusal", () => again.errors.length);
    assert.equal(again.hellos.length, 1);
  },

  async "a token that was rotated replaces the one before"(room) {
    const admin = await operator(room);
    const peer = await paired(room, admin);
    const before = peer.device.tokens.get("node").token;
    const rotated = await admin.request("device.token.rotate", { deviceId: peer.device.id, role: "node" });
    await peer.stop();
    const old = node(room, peer.device, { token: undefined });
    assert.equal((await old.refused()).details.code, "AUTH_DEVICE_TOKEN_MISMATCH");
    assert.ok(!peer.device.tokens.has("node"), "the client keeps a token that is worth nothing");
    await old.stop();
    assert.notEqual(rotated.token, before);
    // Another device does not get to see it; the device itself is given a new one with the shared token.
    const fresh = node(room, peer.device, { token: TOKEN });
    await fresh.welcomed();
    assert.notEqual(peer.device.tokens.get("node").token, before);
  },

  async "an operator on a device of his own is paired too, and asks for more by asking again"(room) {
    const admin = await operator(room);
    const device = new Device();
    const more = { role: "operator", mode: "ui", clientName: "openclaw-macos", caps: [], commands: undefined };
    const first = node(room, device, { ...more, scopes: ["operator.read"] });
    // The shared token is enough for an operator.
    await first.welcomed();
    assert.deepEqual(first.hellos[0].auth.scopes, ["operator.read"]);
    assert.ok(admin.hellos.length === 1);
  },
};
