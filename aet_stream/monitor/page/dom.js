// Small helpers. Text from outside enters the page through textContent only.

/** An element with properties, attributes (with a dash or ending in _) and children; strings become text. */
export function el(tag, properties = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key in node && !tag.startsWith("svg:") && !key.includes("-")) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A name that breaks where its parts end, not within a word. */
export const parts = (name) => name.split(/(?<=[_\-./ ])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));

export const $ = (id) => document.getElementById(id);

/** Write text only where it changes, so that screen readers and the layout stay calm. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const degrees = (value) => (value === null || value === undefined ? "no tilt" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)}°`);

/** Three significant digits, thin and short; powers of ten from `most` on. */
export function figure(value, most = 1e6) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= most || size < 1e-3)) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  const text = size >= 1 ? value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2) : String(+value.toPrecision(3));
  return text.replace("-", "−");
}

/** Day, month in letters and time; the year where it is another one. */
export function moment(time) {
  const at = new Date(time), year = at.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  const day = at.toLocaleDateString([], { day: "numeric", month: "short", ...year }).replaceAll(" ", "\u00a0");
  return `${day}, ${at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

export const bytes = (value) => (value >= 1e12 ? `${(value / 1e12).toFixed(1)} TB` : `${(value / 1e9).toFixed(0)} GB`);
export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
