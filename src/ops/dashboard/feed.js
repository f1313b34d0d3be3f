// The connection: server-sent events while they come; one question every few seconds when there is
// no place for another live page; and growing pauses when nobody answers.

const SILENCE_MAX = 5000;
const POLL_EVERY = 5000;
const LIVE_AGAIN = 30000;
const PAUSE_MIN = 1000;
const PAUSE_MAX = 30000;
const HIDDEN_MAX = 5 * 60000;
const ASK_MAX = 4000;

export class Feed {
  /** `take(document)` for each document; `tell(state)` when the connection changes: live, polling, lost
   * (with `next`, when it is tried again, in ms since 1970), paused. */
  constructor(take, tell) {
    this.take = take;
    this.tell = tell;
    this.pause = PAUSE_MIN;
    this.source = null;
    this.timer = 0;
    this.watch = 0;
    this.hidden = 0;
    this.state = "";
    document.addEventListener("visibilitychange", () => this.seen());
    // A page that is left may be kept by the browser; its connection need not be.
    addEventListener("pagehide", () => this.stop());
    addEventListener("pageshow", (event) => {
      if (event.persisted) this.start();
    });
  }

  /** Connects now, whatever it waits for. */
  start() {
    this.stop();
    const source = new EventSource("live");
    this.source = source;
    this.listen();
    source.onmessage = (event) => {
      this.listen();
      this.pause = PAUSE_MIN;
      this.say("live");
      this.give(event.data);
    };
    source.onerror = () => {
      if (this.source === source) this.fallBack();
    };
  }

  stop() {
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    this.source?.close();
    this.source = null;
  }

  /** A live connection that says nothing for too long is none. */
  listen() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => this.fallBack(), SILENCE_MAX);
  }

  /** No live connection: asks once, and goes on asking when that works. */
  async fallBack() {
    this.stop();
    if (await this.ask()) {
      const again = Date.now() + LIVE_AGAIN;
      this.say("polling");
      this.timer = setTimeout(() => this.poll(again), POLL_EVERY);
    } else {
      this.lost();
    }
  }

  async poll(again) {
    if (Date.now() >= again) {
      this.start();
    } else if (await this.ask()) {
      this.timer = setTimeout(() => this.poll(again), POLL_EVERY);
    } else {
      this.lost();
    }
  }

  lost() {
    this.stop();
    const wait = this.pause * (0.8 + 0.4 * Math.random());
    this.pause = Math.min(PAUSE_MAX, this.pause * 2);
    this.say("lost", Date.now() + wait);
    this.timer = setTimeout(() => this.start(), wait);
  }

  /** One document; false when there is none. */
  async ask() {
    try {
      const answer = await fetch("live.json", { signal: AbortSignal.timeout(ASK_MAX), cache: "no-store" });
      if (!answer.ok) return false;
      const text = await answer.text();
      if (this.state === "paused") return false;
      this.give(text);
      return true;
    } catch {
      return false;
    }
  }

  give(text) {
    let parsed = null;
    try {
      parsed = JSON.parse(text);
    } catch {
      // Half a document is none; the next one is a second away.
    }
    if (parsed) this.take(parsed);
  }

  say(state, next) {
    if (state === this.state && state !== "lost") return;
    this.state = state;
    this.tell({ state, next });
  }

  /** A page that nobody looks at gives its place to another after a while. */
  seen() {
    clearTimeout(this.hidden);
    if (document.hidden) {
      this.hidden = setTimeout(() => {
        this.stop();
        this.say("paused");
      }, HIDDEN_MAX);
    } else if (this.state === "paused" || this.state === "lost") {
      this.state = "";
      this.start();
    }
  }
}
