// The time before this page was opened: questions to /history, and their answers as points of charts.

const ASK_MAX = 10000;

/** name, words, seconds, seconds of a point. */
export const RANGES = [["15m", "15 min", 900, 10], ["6h", "6 h", 21600, 60], ["24h", "24 h", 86400, 300], ["7d", "7 days", 604800, 3600]];

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ASK_MAX), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

function ask({ metric, labels, by, fn }, from, to, step) {
  const query = new URLSearchParams({ metric, by, fn, from, to, step });
  for (const label of labels ?? []) query.append("label", label);
  return get(`history?${query}`);
}

/** Without what lies before the first value and behind the last one. */
function trim(points) {
  const some = (point) => point.values.some((value) => value !== null);
  return points.slice(Math.max(0, points.findIndex(some)), points.findLastIndex(some) + 1);
}

/** Adds up the series that `pick` takes. Null where nothing at all is known; where others are, a series that is
 * not there was nothing: no request was ever refused, for one. */
function together({ series, times }, pick) {
  const out = new Array(times.length).fill(null);
  for (const { labels, values } of series) {
    const counts = !pick || pick(labels);
    values.forEach((value, at) => {
      if (value !== null) out[at] = (out[at] ?? 0) + (counts ? value : 0);
    });
  }
  return out;
}

/** The points of all charts, [[{ at, values }]], for the time between `from` and `to`. A metric that nothing
 * was counted of yet has no history, and is not asked for. */
export async function past(charts, from, to, step) {
  const list = await get("history");
  const known = new Set(list.metrics.map((row) => row.metric));
  const asked = new Map();
  const once = (question) => {
    if (!known.has(question.metric)) return null;
    const key = JSON.stringify([question.metric, question.labels, question.by, question.fn]);
    if (!asked.has(key)) asked.set(key, ask(question, Math.floor(from), Math.floor(to), step));
    return asked.get(key);
  };
  return Promise.all(charts.map(async ({ lines }) => {
    const answers = await Promise.all(lines.map((line) => once(line.past)));
    const moments = new Map();
    answers.forEach((answer, line) => {
      if (!answer) return;
      together(answer, lines[line].past.pick).forEach((value, at) => {
        const middle = Math.min(answer.times[at] + answer.step / 2, to);
        if (!moments.has(middle)) moments.set(middle, lines.map(() => null));
        moments.get(middle)[line] = value;
      });
    });
    return trim([...moments].map(([at, values]) => ({ at, values })).sort((a, b) => a.at - b.at));
  }));
}
