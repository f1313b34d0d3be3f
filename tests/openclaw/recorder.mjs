// The test of the test: a gateway that breaks the protocol in one way each, and must be caught at it.

import assert from "node:assert/strict";
import { WebSocketServer, WebSocket } from "ws";
import { Recorder } from "./frames.mjs";

const RES = { type: "res", id: "1", ok: true, payload: {} };
const EVENT = { type: "event", event: "tick", payload: { ts: 1 }, seq: 1 };
const CHAT = { runId: "r", sessionKey: "main", seq: 0, state: "delta", deltaText: "x" };

/** Name of the fault -> what is sent after the request `tick.tock` with the id 1. */
const BROKEN = {
  "not JSON": "{",
  "a binary message": Buffer.from(JSON.stringify(EVENT)),
  "neither an answer nor an event": { type: "hello" },
  "must NOT have additional properties": { ...RES, extra: 1 },
  "must have required property 'ok'": { type: "res", id: "1" },
  "must be integer": { ...EVENT, seq: 1.5 },
  "event tick": { ...EVENT, payload: { ts: "now" } },
  "event chat": { ...EVENT, event: "chat", payload: { ...CHAT, state: "done" } },
  "an event without seq": { ...EVENT, seq: undefined },
  "seq 1 after 1": [EVENT, EVENT],
  "an answer to nobody": { ...RES, id: "2" },
  "answered 2 times": [RES, RES],
  "ok and error do not agree": { ...RES, error: { code: "UNAVAILABLE", message: "x" } },
  "details of an error": {
    type: "res", id: "1", ok: false,
    error: { code: "FORBIDDEN", message: "x", details: { code: "MISSING_SCOPE" } },
  },
};

/** What a recorder of its own says of a gateway that sends these. */
async function caught(messages, method = "tick.tock") {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  server.on("connection", (socket) => socket.on("message", () => {
    for (const message of messages) {
      socket.send(Buffer.isBuffer(message) || typeof message === "string" ? message : JSON.stringify(message));
    }
    socket.close();
  }));
  await new Promise((resolve) => server.once("listening", resolve));
  const recorder = new Recorder();
  const socket = recorder.watch(new WebSocket(`ws://127.0.0.1:${server.address().port}`));
  socket.once("open", () => socket.send(JSON.stringify({ type: "req", id: "1", method })));
  await new Promise((resolve) => socket.once("close", resolve));
  await new Promise((resolve) => server.close(resolve));
  return recorder;
}

export const checks = {
  async "a frame outside the protocol is caught, whatever is wrong with it"() {
    for (const [fault, messages] of Object.entries(BROKEN)) {
      const { faults } = await caught([messages].flat());
      assert.equal(faults.length, 1, `${fault}: ${faults}`);
      assert.ok(faults[0].includes(fault), `${fault}: ${faults}`);
    }
  },

  async "a welcome that lacks something is caught"() {
    const hello = { type: "hello-ok", protocol: 4, server: { version: "1", connId: "1" } };
    const { faults } = await caught([{ ...RES, payload: hello }], "connect");
    assert.ok(faults[0].includes("method connect: / must have required property"), String(faults));
  },

  async "what is right is counted and not complained of"() {
    const accepted = { ...RES, payload: { status: "accepted", runId: "r" } };
    const { faults, frames, payloads, undescribed } = await caught([EVENT, accepted, { ...EVENT, seq: 4 }, RES]);
    assert.deepEqual(faults, []);
    assert.equal(frames, 4);
    assert.equal(payloads, 2);
    assert.deepEqual([...undescribed], [["method tick.tock", 2]]);
  },
};
