// The reference client of the OpenClaw gateway protocol, unchanged, against the running gateway.
//
// Starts `tidegate run` in a temporary folder, connects `@openclaw/gateway-client` as operators and as
// nodes, and holds every frame that the gateway sends against `protocol.schema.json` (frames.mjs).
//
// usage: run.mjs PATH-OF-TIDEGATE [WORD-IN-THE-NAME-OF-A-CHECK]

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Recorder } from "./frames.mjs";
import { House } from "./house.mjs";

const GROUPS = ["recorder", "connect", "pairing", "nodes", "chat", "gateway", "restart", "fuzz"];

async function main(program, only = "") {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "tidegate-openclaw-"));
  const recorder = new Recorder().install();
  const house = await House.build(path.resolve(program), folder);
  let passed = 0;
  const failed = [];
  const begun = Date.now();
  try {
    await house.start();
    for (const group of GROUPS) {
      const { checks } = await import(`./${group}.mjs`);
      for (const [name, check] of Object.entries(checks)) {
        if (!`${group} ${name}`.includes(only)) continue;
        const start = Date.now();
        const faults = recorder.faults.length;
        const open = [];
        try {
          await check({ house, recorder, keep: (peer) => (open.push(peer), peer) });
          const wrong = recorder.faults.slice(faults);
          if (wrong.length) throw new Error(`frames outside the protocol:\n  ${wrong.slice(0, 5).join("\n  ")}`);
          passed += 1;
          console.log(`openclaw ${group}: ${name} ... ok (${((Date.now() - start) / 1000).toFixed(1)} s)`);
        } catch (error) {
          failed.push(`${group}: ${name}`);
          const wrong = recorder.faults.slice(faults);
          if (wrong.length && !error.message.includes(wrong[0])) error.stack += `\n${wrong.length} frames outside the protocol:\n  ${wrong.slice(0, 5).join("\n  ")}`;
          console.log(`openclaw ${group}: ${name} ... FAILED\n${short(error)}`);
        } finally {
          await Promise.all(open.map((peer) => peer.stop()));
        }
      }
    }
    if (failed.length) console.log(`--- the gateway's last lines\n${house.lastLines()}`);
  } finally {
    await house.stop();
    fs.rmSync(folder, { recursive: true, force: true });
  }
  summary(recorder);
  console.log(`openclaw result: ${passed} passed; ${failed.length} failed; ${((Date.now() - begun) / 1000).toFixed(0)} s`);
  return failed.length || !passed ? 1 : 0;
}

/** An error with the lines of these files that it came through. */
function short(error) {
  const lines = String(error.stack).split("\n");
  return lines.filter((line) => !/^\s+at /.test(line) || (line.includes("tests/openclaw/") && !/node_modules|frames\.mjs/.test(line))).join("\n");
}

function summary(recorder) {
  const list = (map) => [...map].sort().map(([name, times]) => `${name} x${times}`).join(", ") || "none";
  console.log(`openclaw frames: ${recorder.frames} from the gateway, all held against the schema; ${recorder.payloads} payloads too; ${recorder.faults.length} faults; ${recorder.gaps} gaps in seq`);
  console.log(`openclaw described: ${list(recorder.described)}`);
  console.log(`openclaw without a definition in the schema: ${list(recorder.undescribed)}`);
  console.log(`openclaw error codes: ${list(recorder.codes)}`);
}

process.exitCode = await main(process.argv[2], process.argv[3]);
