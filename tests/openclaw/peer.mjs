// The reference client with what a program around it brings: an identity, a place for its device token,
// and a list of what happened.

import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { GatewayClient } from "@openclaw/gateway-client";
import { eventually } from "./house.mjs";

/** A new Ed25519 identity, and the token that it was given. */
export class Device {
  constructor() {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const raw = Buffer.from(publicKey.export({ format: "jwk" }).x, "base64url");
    this.identity = {
      deviceId: createHash("sha256").update(raw).digest("hex"),
      publicKeyPem: publicKey.export({ type: "spki", format: "pem" }),
      privateKeyPem: privateKey.export({ type: "pkcs8", format: "pem" }),
    };
    this.tokens = new Map();
  }

  get id() {
    return this.identity.deviceId;
  }

  sign(payload) {
    return sign(null, Buffer.from(payload), createPrivateKey(this.identity.privateKeyPem)).toString("base64url");
  }

  get hostDeps() {
    return {
      signDevicePayload: (_pem, payload) => this.sign(payload),
      publicKeyRawBase64UrlFromPem: (pem) => createPublicKey(pem).export({ format: "jwk" }).x,
      loadDeviceAuthToken: ({ role }) => this.tokens.get(role) ?? null,
      storeDeviceAuthToken: ({ role, token, scopes }) => this.tokens.set(role, { token, scopes }),
      clearDeviceAuthToken: ({ role }) => this.tokens.delete(role),
    };
  }
}

/** A running client. Options are those of `GatewayClient`, and `device`. */
export class Peer {
  constructor(house, { device, ...options }) {
    Object.assign(this, { hellos: [], closes: [], errors: [], events: [], gaps: [], paused: [] });
    this.client = new GatewayClient({
      url: house.url,
      // No client of these tests may find an identity of its own.
      deviceIdentity: device ? device.identity : null,
      hostDeps: device?.hostDeps,
      onHelloOk: (hello) => this.hellos.push(hello),
      onConnectError: (error) => this.errors.push(error),
      onReconnectPaused: (info) => this.paused.push(info),
      onClose: (code, reason, info) => this.closes.push({ code, reason, info }),
      onGap: (gap) => this.gaps.push(gap),
      onEvent: (event) => {
        this.events.push(event);
        this.answering?.(event);
      },
      ...options,
    });
    this.client.start();
  }

  /** Waits until it was welcomed for the n-th time. */
  async welcomed(n = 1) {
    await eventually(`hello ${n}; errors: ${this.errors.map(String)}`, () => this.hellos.length >= n, 15);
    return this.hellos[n - 1];
  }

  /** Waits until it was refused, and gives the error. */
  async refused() {
    return eventually("a refusal", () => this.errors[0]);
  }

  /** Waits for the first event of a name, after `from`, that fits. */
  async event(name, fits = () => true, from = 0) {
    return eventually(`event ${name}`, () =>
      this.events.slice(from).find((event) => event.event === name && fits(event.payload)));
  }

  of(name, fits = () => true) {
    return this.events.filter((event) => event.event === name && fits(event.payload));
  }

  request(method, params, options) {
    return this.client.request(method, params, options);
  }

  /** The error that a request comes to. */
  async error(method, params, options) {
    try {
      const payload = await this.request(method, params, options);
      throw new Error(`${method} was carried out: ${JSON.stringify(payload).slice(0, 200)}`);
    } catch (error) {
      if (!error.gatewayCode) throw error;
      return error;
    }
  }

  async stop() {
    await this.client.stopAndWait({ timeoutMs: 2000 }).catch(() => {});
  }
}
