// Chat and agents: deltas, finals, aborts, and what is remembered.

import assert from "node:assert/strict";
import { eventually } from "./house.mjs";
import { key, keyed, operator } from "./said.mjs";

const WORDS = "the sea is wide and nobody has counted the waves that came to this shore so far";

/** The text of a message, whichever way it is written. */
export function text(message) {
  if (typeof message === "string") return message;
  const content = message?.content ?? message?.text ?? "";
  if (typeof content === "string") return content;
  return content.map((part) => part.text ?? "").join("");
}

/** Sends a message and gives its run's id and the way to wait for its end. */
async function say(peer, message, more = {}) {
  const idempotencyKey = key();
  const { model, ...rest } = more;
  if (model) await peer.request("sessions.patch", { key: more.sessionKey, model });
  const sent = await peer.request("chat.send", { sessionKey: more.sessionKey ?? `s-${idempotencyKey}`, message, idempotencyKey, ...rest });
  assert.equal(sent.runId, idempotencyKey);
  const ours = (payload) => payload.runId === sent.runId;
  return {
    runId: sent.runId,
    sent,
    deltas: () => peer.of("chat", (payload) => ours(payload) && payload.state === "delta").map(({ payload }) => payload),
    end: () => peer.event("chat", (payload) => ours(payload) && payload.state !== "delta" && payload.state !== "status").then(({ payload }) => payload),
  };
}

/** What a client shows of the deltas. */
function shown(deltas) {
  return deltas.reduce((all, { deltaText, replace }) => (replace ? deltaText : all + deltaText), "");
}

export const checks = {
  async "a chat streams its deltas and ends with the whole"(room) {
    const peer = await keyed(room);
    const sessionKey = "sea";
    const run = await say(peer, WORDS, { sessionKey, model: "slow" });
    const end = await run.end();
    assert.equal(end.state, "final", JSON.stringify(end));
    assert.equal(text(end.message), WORDS);
    const deltas = run.deltas();
    assert.ok(deltas.length > 3, `${deltas.length} deltas`);
    assert.equal(shown(deltas), WORDS.slice(0, shown(deltas).length));
    const seqs = [...deltas, end].map(({ seq }) => seq);
    assert.deepEqual(seqs, [...seqs].sort((a, b) => a - b));
    assert.deepEqual(peer.gaps, []);

    const history = await peer.request("chat.history", { sessionKey });
    assert.deepEqual(history.messages.map((m) => [m.role, text(m)]), [["user", WORDS], ["assistant", WORDS]]);
  },

  async "a chat of one account is not seen by another"(room) {
    const peer = await keyed(room);
    const other = await operator(room, { scopes: ["operator.read", "operator.write"] });
    const run = await say(peer, "a secret", { sessionKey: "mine" });
    await run.end();
    assert.deepEqual(other.of("chat"), []);
    const { sessions } = await other.request("sessions.list", {});
    assert.ok(!JSON.stringify(sessions).includes("mine"), JSON.stringify(sessions));
    const history = await other.request("chat.history", { sessionKey: "mine" }).catch(() => ({ messages: [] }));
    assert.deepEqual(history.messages, []);
  },

  async "the same key runs once"(room) {
    const peer = await keyed(room);
    const idempotencyKey = key();
    const params = { sessionKey: "once", message: "only once", idempotencyKey };
    const answers = await Promise.all([peer.request("chat.send", params), peer.request("chat.send", params)]);
    assert.deepEqual(answers.map(({ runId }) => runId), [idempotencyKey, idempotencyKey]);
    await peer.event("chat", (payload) => payload.runId === idempotencyKey && payload.state === "final");
    await peer.request("chat.send", params);
    const { messages } = await peer.request("chat.history", { sessionKey: "once" });
    assert.equal(messages.length, 2, JSON.stringify(messages));
  },

  async "an abort ends the run in the middle, and says so"(room) {
    const { house } = room;
    const peer = await keyed(room);
    const sessionKey = "long";
    const run = await say(peer, `${WORDS} `.repeat(20), { sessionKey, model: "slow" });
    await eventually("a delta", () => run.deltas().length);
    const during = await peer.request("chat.history", { sessionKey });
    assert.ok(during.inFlightRun || during.sessionInfo?.hasActiveRun, JSON.stringify(during).slice(0, 400));
    const aborted = await peer.request("chat.abort", { sessionKey, runId: run.runId });
    assert.equal(aborted.aborted, true);
    const end = await run.end();
    assert.equal(end.state, "aborted");
    await eventually("cancelled upstream", async () =>
      (await house.metric("tidegate_limit_now", 'limit="server.exchanges_max"')) === 0);
    const again = await peer.request("chat.abort", { sessionKey, runId: run.runId });
    assert.equal(again.aborted, false);
  },

  async "a chat with a model that is not there ends as an error, not as an answer"(room) {
    const peer = await keyed(room);
    const sessionKey = "nowhere";
    let end;
    try {
      const run = await say(peer, "anybody?", { sessionKey, model: "no-such-model" });
      end = await run.end();
    } catch (error) {
      assert.ok(error.gatewayCode, String(error));
      return;
    }
    assert.equal(end.state, "error");
    assert.ok(end.errorMessage.includes("no-such-model"), end.errorMessage);
  },

  async "an agent run streams to those who look on, and is waited for"(room) {
    const peer = await keyed(room);
    const runId = key();
    const accepted = [];
    const whole = peer.request("agent", { message: WORDS, sessionKey: "agent-1", idempotencyKey: runId },
      { expectFinal: true, timeoutMs: 15000, onAccepted: (payload) => accepted.push(payload) });
    const final = await whole;
    assert.equal(accepted[0]?.runId, runId, JSON.stringify(accepted));
    assert.deepEqual([final.runId, final.status], [runId, "ok"]);
    assert.ok(JSON.stringify(final).includes(WORDS), JSON.stringify(final));
    const waited = await peer.request("agent.wait", { runId, timeoutMs: 5000 });
    assert.deepEqual([waited.runId, waited.status], [runId, "ok"]);
    const events = peer.of("agent", (payload) => payload.runId === runId).map(({ payload }) => payload);
    const phases = events.filter(({ stream }) => stream === "lifecycle").map(({ data }) => data.phase);
    assert.deepEqual(phases, ["start", "end"]);
    assert.ok(events.some(({ stream }) => stream === "assistant"));
    const seqs = events.map(({ seq }) => seq);
    assert.deepEqual(seqs, [...new Set(seqs)].sort((a, b) => a - b));
  },

  async "agent.wait says when it has waited long enough"(room) {
    const peer = await keyed(room);
    const run = await say(peer, `${WORDS} `.repeat(5), { sessionKey: "waited", model: "slow" });
    const waited = await peer.request("agent.wait", { runId: run.runId, timeoutMs: 50 });
    assert.deepEqual([waited.runId, waited.status], [run.runId, "timeout"]);
    await peer.request("chat.abort", { sessionKey: "waited", runId: run.runId });
    assert.equal((await run.end()).state, "aborted");
    const nobody = await peer.error("agent.wait", { runId: key(), timeoutMs: 50 });
    assert.equal(nobody.gatewayCode, "INVALID_REQUEST");
  },

  async "sessions are listed with what was said last, and their usage is told"(room) {
    const peer = await keyed(room);
    const run = await say(peer, "count these five words", { sessionKey: "counted" });
    await run.end();
    const { sessions } = await peer.request("sessions.list", { includeLastMessage: true });
    const row = sessions.find((session) => session.key.includes("counted"));
    assert.ok(row, JSON.stringify(sessions));
    const usage = await peer.request("sessions.usage", { key: row.key });
    assert.ok(Array.isArray(usage.sessions) && usage.totals, JSON.stringify(usage).slice(0, 400));
  },

  async "who subscribes to sessions hears that they change"(room) {
    const peer = await keyed(room);
    await peer.request("sessions.subscribe", {});
    const before = peer.events.length;
    const run = await say(peer, "a change", { sessionKey: "changing" });
    await run.end();
    await peer.event("sessions.changed", () => true, before);
    await peer.request("sessions.messages.subscribe", { key: "changing" });
    await peer.request("sessions.messages.unsubscribe", { key: "changing" });
  },

  async "wake is taken"(room) {
    const peer = await keyed(room);
    const woken = await peer.request("wake", { mode: "next-heartbeat", text: "somebody rang" });
    assert.equal(woken.ok, true);
  },
};
