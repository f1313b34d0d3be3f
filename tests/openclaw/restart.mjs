// A gateway that goes and comes again: the clients find back by themselves.

import assert from "node:assert/strict";
import { eventually } from "./house.mjs";
import { answering, invoke, operator, paired } from "./said.mjs";

/** Ends the gateway with this signal, starts it again, and looks that both sides work as before. */
async function again(room, signal) {
  const { house } = room;
  const admin = await operator(room);
  const peer = await paired(room, admin);
  answering(peer, () => ({ ok: true, payload: "here" }));
  await admin.request("node.invoke", invoke(peer.device.id, "device.info"));
  const waiting = admin.request("node.invoke", invoke("nobody", "device.info")).catch((error) => error);
  await waiting;
  const end = await house.stop(signal);
  await eventually("both closed", () => admin.closes.length && peer.closes.length);
  await house.start();
  await Promise.all([admin.welcomed(2), peer.welcomed(2)]);
  const { payload } = await admin.request("node.invoke", invoke(peer.device.id, "device.info"));
  assert.equal(payload, "here");
  assert.notEqual(admin.hellos[0].server.connId, admin.hellos[1].server.connId);
  return { admin, peer, end };
}

export const checks = {
  async "at a restart clients are told, closed with 1012, and come back by themselves"(room) {
    const { admin, peer, end } = await again(room, "SIGTERM");
    assert.equal(end.code, 0, JSON.stringify(end));
    for (const one of [admin, peer]) {
      const { payload } = one.of("shutdown")[0] ?? {};
      assert.ok(payload?.reason, "no shutdown event");
      assert.equal(one.closes[0].code, 1012, JSON.stringify(one.closes[0]));
    }
  },

  async "after kill -9 they come back too, and devices are still paired"(room) {
    const { admin } = await again(room, "SIGKILL");
    assert.equal(admin.closes[0].code, 1006);
    assert.equal(admin.of("shutdown").length, 0);
  },
};
