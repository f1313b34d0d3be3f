// Figures as people read them. Every unit is written out; "–" stands for what is not known.

const NONE = "–";
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** Three digits that say something, at most. */
function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 99.95) return value.toFixed(0);
  if (size >= 9.995) return value.toFixed(1).replace(/\.0$/, "");
  return value.toFixed(2).replace(/\.?0+$/, "");
}

/** A count of things: whole up to 99 999, shortened above; an average may be none. */
export function count(value) {
  if (!known(value)) return NONE;
  if (!Number.isInteger(value) && Math.abs(value) < 100) return short(value);
  if (Math.abs(value) < 100000) return plain.format(Math.round(value));
  if (Math.abs(value) < 1e6) return `${short(value / 1e3)}k`;
  if (Math.abs(value) < 1e9) return `${short(value / 1e6)}M`;
  return `${short(value / 1e9)}G`;
}

/** Whole, however large. */
export function whole(value) {
  return known(value) ? plain.format(value) : NONE;
}

/** Things a second. */
export function rate(value) {
  if (!known(value)) return NONE;
  return Math.abs(value) < 1000 ? `${short(value)}/s` : `${count(value)}/s`;
}

/** Bytes, in the units of the configuration file. */
export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (Math.abs(value) >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${short(value)} ${units[at]}`;
}

/** A time that was measured, in seconds. */
export function seconds(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0 s";
  if (value < 0.0001) return `${short(value * 1e6)} µs`;
  if (value < 0.9995) return `${short(value * 1e3)} ms`;
  if (value < 120) return `${short(value)} s`;
  return span(value);
}

/** A long time, in its two largest units. */
export function span(value) {
  if (!known(value)) return NONE;
  const all = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.max(0, Math.round(value));
  const parts = [];
  for (const [unit, size] of all) {
    const many = Math.floor(left / size);
    left -= many * size;
    if (many > 0 || (unit === "s" && parts.length === 0)) parts.push(`${many} ${unit}`);
    else if (parts.length > 0) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

/** A share, of 1. */
export function percent(value) {
  if (!known(value)) return NONE;
  const hundred = value * 100;
  if (hundred !== 0 && Math.abs(hundred) < 0.1) return "<0.1 %";
  return `${hundred < 9.95 ? short(Math.round(hundred * 10) / 10) : hundred.toFixed(0)} %`;
}

const two = (value) => String(value).padStart(2, "0");

/** Time of day, with seconds. `at` in seconds since 1970. */
export function clock(at) {
  const date = new Date(at * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** A moment of an axis: the time of day, or the day where it begins. */
export function moment(at, range) {
  const date = new Date(at * 1000);
  if (range <= 2 * 86400) return `${two(date.getHours())}:${two(date.getMinutes())}`;
  return date.toLocaleDateString("en", { weekday: "short", day: "numeric" });
}

/** A moment in full: with its day when that is not today. */
export function full(at) {
  const date = new Date(at * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return today ? clock(at) : `${date.toLocaleDateString("en", { month: "short", day: "numeric" })} ${clock(at)}`;
}
