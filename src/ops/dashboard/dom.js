// Elements, without markup in strings: nothing that a name holds can become a tag.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element. */
export function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** Changes a text, only when it differs: a selection of the reader stays. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Changes an attribute, only when it differs; null takes it away. */
export function attribute(node, name, value) {
  if (value === null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value);
  }
}

/** What `list` put where. */
const listed = new WeakMap();

/** Makes the children of `parent` those of `items`, in this order; what was there is kept and updated.
 * `make` gives an element, `update` brings one up to date. */
export function list(parent, items, key, make, update) {
  const had = listed.get(parent) ?? new Map();
  const has = new Map();
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    const node = had.get(name) ?? make(item);
    had.delete(name);
    has.set(name, node);
    update(node, item);
    if (node === before) before = before.nextElementSibling;
    else parent.insertBefore(node, before);
  }
  for (const node of had.values()) node.remove();
  listed.set(parent, has);
}

/** A sign and a word, which say the same: colour is never the only one. */
export function badge(kind) {
  const node = el("span", { class: "badge" }, el("span", { class: "sign", "aria-hidden": "true" }), " ", el("span"));
  if (kind) setBadge(node, ...kind);
  return node;
}

const SIGNS = { good: "✓", warn: "!", bad: "✕", idle: "–", info: "i" };

/** Changes a badge: `kind` is one of good, warn, bad, idle, info. */
export function setBadge(node, kind, word) {
  attribute(node, "data-kind", kind);
  text(node.firstElementChild, SIGNS[kind]);
  text(node.lastElementChild, word);
}
