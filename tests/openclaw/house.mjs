// The gateway in a folder of its own, with what stands behind it.

import { spawn, execFile } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";

export const TOKEN = "the-token-of-this-house-0123456789abcdef";
export const PASSWORD = "the-password-of-this-house-0123456789";
export const KEY = "the-key-of-the-laptop-0123456789abcdef";
const PATIENCE = Number(process.env.TIDEGATE_TEST_PATIENCE ?? 1);

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `condition` gives something that is true, and gives it. */
export async function eventually(what, condition, seconds = 10) {
  const deadline = Date.now() + seconds * 1000 * PATIENCE;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`never: ${what}`);
    await sleep(10);
  }
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export class House {
  static async build(program, folder, extra = "") {
    const house = new House();
    Object.assign(house, { program, folder, port: await freePort(), ops: await freePort() });
    house.config = path.join(folder, "tidegate.toml");
    house.log = path.join(folder, "tidegate.log");
    fs.mkdirSync(path.join(folder, "state"), { mode: 0o700 });
    const sha256 = createHash("sha256").update(KEY).digest("hex");
    fs.writeFileSync(house.config, `# The house of the clients.
[server]
listen = "127.0.0.1:${house.port}"
drain_timeout = "3s"
[ops]
listen = "127.0.0.1:${house.ops}"
[state]
dir = "${path.join(folder, "state")}"
[log]
dir = "${path.join(folder, "logs")}"
[nodes]
token_env = "HOUSE_TOKEN"
password_env = "HOUSE_PASSWORD"
tick_interval = "1s"
[[key]]
name = "laptop"
sha256 = "${sha256}"
[[upstream]]
name = "slow"
kind = "echo"
word_delay = "40ms"
[[model]]
name = "default"
primary = "echo/echo"
[[model]]
name = "slow"
primary = "slow/echo"
${extra}`);
    return house;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}`;
  }

  async start() {
    const output = fs.openSync(this.log, "a");
    this.process = spawn(this.program, ["run", "--config", this.config], {
      stdio: ["ignore", output, output],
      env: { ...process.env, HOUSE_TOKEN: TOKEN, HOUSE_PASSWORD: PASSWORD },
    });
    fs.closeSync(output);
    this.gone = new Promise((resolve) => this.process.once("exit", (code, signal) => resolve({ code, signal })));
    this.over = false;
    this.gone.then(() => (this.over = true));
    await eventually("ready", async () => {
      if (this.over) throw new Error(`the gateway did not start: ${this.lastLines()}`);
      const answer = await fetch(`http://127.0.0.1:${this.ops}/readyz`).catch(() => null);
      await answer?.arrayBuffer();
      return answer?.ok;
    }, 30);
  }

  /** Ends it with a signal and waits until it is gone. */
  async stop(signal = "SIGTERM") {
    if (!this.process || this.over) return;
    this.process.kill(signal);
    const late = setTimeout(() => this.process.kill("SIGKILL"), 30000);
    const end = await this.gone;
    clearTimeout(late);
    return end;
  }

  /** A command of the program, beside the daemon. */
  async command(...args) {
    return new Promise((resolve, reject) => {
      execFile(this.program, [...args, "--config", this.config], { timeout: 20000 }, (error, stdout, stderr) => {
        if (error) reject(new Error(`tidegate ${args.join(" ")}: ${error.message}\n${stdout}${stderr}`));
        else resolve(stdout);
      });
    });
  }

  /** A figure of /metrics, summed over its labels that hold `label`. */
  async metric(name, label = "") {
    const page = await (await fetch(`http://127.0.0.1:${this.ops}/metrics`)).text();
    const lines = page.split("\n").filter((line) => line.startsWith(name) && /[{ ]/.test(line[name.length]) && line.includes(label));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }

  memory() {
    const status = fs.readFileSync(`/proc/${this.process.pid}/status`, "utf8");
    return Number(/VmRSS:\s+(\d+)/.exec(status)[1]) * 1024;
  }

  lastLines() {
    const logs = [this.log, path.join(this.folder, "logs", "tidegate_rCURRENT.log")].filter((log) => fs.existsSync(log));
    const lines = logs.flatMap((log) => fs.readFileSync(log, "utf8").trimEnd().split("\n").slice(-25));
    return lines.join("\n");
  }
}
