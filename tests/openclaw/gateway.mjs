// The gateway itself: health, configuration, usage, logs, models.

import assert from "node:assert/strict";
import fs from "node:fs";
import { eventually, KEY, TOKEN } from "./house.mjs";
import { keyed, operator } from "./said.mjs";

async function hash(peer) {
  return (await peer.request("config.get", {})).hash;
}

export const checks = {
  async "health and status say how it is"(room) {
    const peer = await keyed(room);
    const health = await peer.request("health", { probe: true });
    assert.equal(typeof health.ts, "number");
    const status = await peer.request("status", {});
    assert.ok(Object.keys(status).length > 0);
  },

  async "the configuration is read without its secrets"(room) {
    const peer = await operator(room);
    const config = await peer.request("config.get", {});
    assert.equal(config.path, room.house.config);
    assert.ok(config.exists && config.valid && config.hash, JSON.stringify(config).slice(0, 300));
    assert.ok(config.raw.includes("# The house of the clients."));
    const all = JSON.stringify(config);
    assert.ok(!all.includes(TOKEN) && !all.includes(KEY));
    const { sha256 } = /sha256 = "(?<sha256>\w+)"/.exec(fs.readFileSync(room.house.config, "utf8")).groups;
    assert.ok(!all.includes(sha256), "the hash of a key is a secret too");
  },

  async "a patch is written with the comments kept, and counts at once"(room) {
    const peer = await operator(room);
    const answer = await peer.request("config.patch", {
      raw: '{ nodes: { tick_interval: "900ms" } }', baseHash: await hash(peer), note: "faster",
    });
    assert.equal(answer.ok, true, JSON.stringify(answer).slice(0, 300));
    const file = fs.readFileSync(room.house.config, "utf8");
    assert.ok(file.includes("# The house of the clients.") && file.includes('tick_interval = "900ms"'), file);
    await eventually("in force", async () => {
      const next = await operator(room);
      const { tickIntervalMs } = next.hellos[0].policy;
      await next.stop();
      return tickIntervalMs === 900;
    });
    await peer.request("config.patch", { raw: '{"nodes":{"tick_interval":"1s"}}', baseHash: await hash(peer) });
  },

  async "what contradicts itself, and what was changed in between, is refused in the words that clients know"(room) {
    const peer = await operator(room);
    const none = await peer.error("config.patch", { raw: "{}" });
    assert.ok(none.message.includes("config base hash required; re-run config.get and retry"), none.message);
    const stale = await peer.error("config.patch", { raw: "{}", baseHash: "0".repeat(64) });
    assert.ok(stale.message.includes("config changed since last load; re-run config.get and retry"), stale.message);
    const wrong = await peer.error("config.patch", { raw: '{"nodes":{"ping_interval":"a while"}}', baseHash: await hash(peer) });
    assert.ok(wrong.message.startsWith("invalid config"), wrong.message);
    assert.ok(wrong.details.issues.some(({ path, message }) => path.includes("ping_interval") && message), JSON.stringify(wrong.details));
    for (const error of [none, stale, wrong]) assert.equal(error.gatewayCode, "INVALID_REQUEST");
  },

  async "the schema of the configuration is there, whole and by path"(room) {
    const peer = await operator(room);
    const { schema } = await peer.request("config.schema", {});
    assert.ok(schema.properties.nodes, Object.keys(schema).join());
    const part = await peer.request("config.schema.lookup", { path: "nodes" });
    assert.ok(part.children.some(({ key }) => key === "tick_interval"), JSON.stringify(part).slice(0, 300));
  },

  async "models, usage and costs are those of the gateway"(room) {
    const peer = await keyed(room);
    const { models } = await peer.request("models.list", {});
    const ids = models.map(({ id }) => id);
    assert.ok(ids.includes("default") && ids.includes("slow"), ids.join());
    await peer.request("usage.status", {});
    const said = await fetch(`http://127.0.0.1:${room.house.port}/v1/chat/completions`, {
      method: "POST",
      headers: { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" },
      body: JSON.stringify({ model: "default", messages: [{ role: "user", content: "counted over HTTP" }] }),
    });
    assert.equal(said.status, 200);
    await eventually("counted", async () => (await (await fetch(`http://127.0.0.1:${room.house.ops}/usage?key=laptop`)).json()).totals.totalTokens > 0);
    const cost = await peer.request("usage.cost", { days: 7 });
    for (const part of [cost.totals, ...cost.daily]) {
      for (const field of ["input", "output", "cacheRead", "cacheWrite", "totalTokens", "totalCost", "missingCostEntries"]) {
        assert.equal(typeof part[field], "number", `${field}: ${JSON.stringify(part)}`);
      }
    }
    assert.ok(cost.totals.totalTokens > 0, JSON.stringify(cost));
  },

  async "the log is read from where one was"(room) {
    const peer = await keyed(room);
    const first = await peer.request("logs.tail", { limit: 5 });
    assert.ok(first.lines.length > 0 && first.lines.length <= 5);
    await peer.request("no.such.method").catch(() => {});
    const other = await keyed(room);
    await eventually("more", async () => {
      const next = await peer.request("logs.tail", { cursor: first.cursor });
      return !next.reset && next.cursor > first.cursor && next.lines.length > 0;
    });
    await other.stop();
    const all = (await peer.request("logs.tail", { limit: 5000 })).lines.join("\n");
    assert.ok(!all.includes(TOKEN) && !all.includes(KEY), "a secret in the log");
  },
};
