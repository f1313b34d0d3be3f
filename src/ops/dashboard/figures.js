// From live documents to figures: sums, rates and percentiles over the last moments.

/** The rows of a family whose labels are these, as [figure, …]. */
function rows(document, name, where) {
  const family = document.metrics[name];
  if (!family) return [];
  const wanted = Object.entries(where ?? {}).map(([label, value]) => [family.by.indexOf(label), value]);
  const fits = (row) => wanted.every(([at, value]) => (value instanceof RegExp ? value.test(row[at]) : row[at] === value));
  return family.rows.filter(fits).map((row) => row[row.length - 1]);
}

/** The sum of a counter or gauge over the rows with these labels; a value may be a pattern. */
export function sum(document, name, where) {
  return rows(document, name, where).reduce((all, value) => all + value, 0);
}

/** The counts of a histogram's buckets, added up; null when there is none. */
export function buckets(document, name, where) {
  const family = document.metrics[name];
  if (!family?.bounds) return null;
  const counts = new Array(family.bounds.length + 1).fill(0);
  for (const [row] of rows(document, name, where)) row.forEach((value, at) => { counts[at] += value; });
  return { bounds: family.bounds, counts };
}

/** A limit's row, or undefined. */
export function limit(document, name, owner) {
  return document.limits.find((row) => row.limit === name && row.owner === owner);
}

/** The value below which a share of the counted lies, by a straight line within its bucket; null when
 * nothing was counted. Above the last bound it is that bound. */
export function quantile(bounds, counts, share) {
  const all = counts.reduce((a, b) => a + b, 0);
  if (all === 0) return null;
  let below = 0;
  for (let at = 0; at < counts.length; at += 1) {
    if (below + counts[at] >= share * all && counts[at] > 0) {
      if (at === bounds.length) return bounds[at - 1];
      const from = at === 0 ? 0 : bounds[at - 1];
      return from + ((bounds[at] - from) * (share * all - below)) / counts[at];
    }
    below += counts[at];
  }
  return bounds[bounds.length - 1];
}

/** The last documents, for figures that need two of them. */
export class Recent {
  constructor(seconds) {
    this.seconds = seconds;
    this.documents = [];
  }

  add(document) {
    const last = this.last();
    // A daemon that started again counts from nothing.
    if (last && last.process.start_time_seconds !== document.process.start_time_seconds) this.documents = [];
    this.documents.push({ at: document.at, metrics: document.metrics, process: document.process, limits: document.limits });
    while (this.documents[0].at < document.at - this.seconds) this.documents.shift();
  }

  last() {
    return this.documents[this.documents.length - 1];
  }

  /** The oldest document of the last `seconds`; the one before the last when they come more seldom;
   * undefined when there is but one. */
  before(seconds) {
    const last = this.last();
    const found = this.documents.find((document) => document.at >= last.at - seconds - 0.25);
    return found === last ? this.documents[this.documents.length - 2] : found;
  }

  /** How much `figure(document)` grew in the last `seconds`; null when that is not known yet. */
  growth(seconds, figure) {
    const before = this.before(seconds);
    if (!before) return null;
    return Math.max(0, figure(this.last()) - figure(before));
  }

  /** The same for each second. */
  rate(seconds, figure) {
    const before = this.before(seconds);
    if (!before) return null;
    return this.growth(seconds, figure) / (this.last().at - before.at);
  }

  /** Percentiles of what a histogram counted in the last `seconds`; nulls when it was nothing. */
  quantiles(seconds, name, where, shares) {
    const before = this.before(seconds);
    const now = buckets(this.last(), name, where);
    const then = before && buckets(before, name, where);
    if (!now || !then) return shares.map(() => null);
    const counts = now.counts.map((value, at) => Math.max(0, value - then.counts[at]));
    return shares.map((share) => quantile(now.bounds, counts, share));
  }
}
