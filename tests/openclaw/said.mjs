// What several checks say.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Peer, Device } from "./peer.mjs";
import { KEY, TOKEN } from "./house.mjs";

/** An operator that was let in by the shared token; asks for operator.admin unless told otherwise. */
export async function operator(room, options = {}) {
  const peer = room.keep(new Peer(room.house, { token: TOKEN, ...options }));
  await peer.welcomed();
  return peer;
}

/** An operator that was let in by a `[[key]]`. */
export async function keyed(room, scopes = ["operator.read", "operator.write"], options = {}) {
  return operator(room, { token: KEY, scopes, ...options });
}

export const ANDROID = {
  role: "node",
  mode: "node",
  clientName: "openclaw-android",
  clientDisplayName: "Pocket",
  clientVersion: "2026.9.1",
  platform: "android",
  deviceFamily: "Phone",
  scopes: [],
  caps: ["camera", "device"],
  commands: ["device.info", "device.status", "camera.list"],
};

/** A node that asks to be let in. */
export function node(room, device, options = {}) {
  return room.keep(new Peer(room.house, { device, token: TOKEN, ...ANDROID, ...options }));
}

/** A node that was paired on the way, connected, with the commands that it offers approved. */
export async function paired(room, admin, options = {}) {
  const device = new Device();
  const first = node(room, device, options);
  const { requestId } = (await first.refused()).details;
  await admin.request("device.pair.approve", { requestId });
  await first.stop();
  const peer = node(room, device, { token: undefined, deviceToken: undefined, ...options, ...(await secret(device)) });
  await peer.welcomed();
  return Object.assign(peer, { device });
}

/** Before it has a device token a device shows the shared token. */
async function secret(device) {
  return device.tokens.size ? {} : { token: TOKEN };
}

/** Answers what is invoked on a node. */
export function answering(peer, how) {
  peer.answering = (event) => {
    if (event.event !== "node.invoke.request") return;
    const { id, nodeId, command, paramsJSON } = event.payload;
    const result = how(command, paramsJSON === undefined || paramsJSON === null ? undefined : JSON.parse(paramsJSON));
    if (result) peer.request("node.invoke.result", { id, nodeId, ...result }).catch(() => {});
  };
}

export const invoke = (nodeId, command, params, more = {}) =>
  ({ nodeId, command, params, idempotencyKey: randomUUID(), ...more });

export const key = () => randomUUID();

/** Every word of `words` is in `list`. */
export function holds(list, words) {
  const lacking = words.filter((word) => !list.includes(word));
  assert.deepEqual(lacking, [], `not in ${JSON.stringify(list)}`);
}
