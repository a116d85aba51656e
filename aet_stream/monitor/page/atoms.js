// The atoms of a series, to be turned about: drag, pinch, wheel, arrows.

import { $, css, duration, el, say } from "./dom.js";
import { Spheres } from "./spheres.js";

const RADII_ANGSTROM = [1.25, 1.05, 0.9], SETTLED_MS = 150, FLUENT_MS = 25, COARSEST = 0.4, STEP = 0.12, CLOSEST = 40;
const FRONT = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const VIEWS = { "along the beam": FRONT, "from above": [1, 0, 0, 0, 0, -1, 0, 1, 0], "from the side": [0, 0, -1, 0, 1, 0, 1, 0, 0] };
const times = (a, b) => a.map((_, i) => [0, 1, 2].reduce((sum, k) => sum + a[3 * ((i / 3) | 0) + k] * b[3 * k + (i % 3)], 0));
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** Turned to the right and downwards by so many radians, as seen. */
function turned(turn, right, down) {
  const [c, s, d, t] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
  return times([1, 0, 0, 0, d, -t, 0, t, d], times([c, 0, s, 0, 1, 0, -s, 0, c], turn));
}

class Scene {
  constructor() {
    this.canvas = el("canvas", { tabIndex: 0, role: "img" });
    this.pointers = new Map();
    this.ease = 1;
    this.stats = { drawn: 0, last_ms: 0, count: 0, times: [] };
    this.reset(FRONT);
    const { canvas } = this;
    canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); this.pointers.set(event.pointerId, event); };
    canvas.onpointermove = (event) => this.moved(event);
    canvas.onpointerup = canvas.onpointercancel = (event) => this.pointers.delete(event.pointerId);
    canvas.ondblclick = () => { this.reset(FRONT); this.soon(); };
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY / 400)); }, { passive: false });
    canvas.onkeydown = (event) => this.key(event);
    new ResizeObserver(() => this.soon()).observe(canvas);
  }

  reset(turn) {
    Object.assign(this, { turn, closer: 1, shift: [0, 0] });
  }

  show(places, kinds, title) {
    const colours = ["--atom-0", "--atom-1", "--atom-2"].map((name) => rgb(css(name)));
    let reach = 1;
    for (let i = 0; i < kinds.length; i++) reach = Math.max(reach, Math.hypot(places[3 * i], places[3 * i + 1], places[3 * i + 2]));
    Object.assign(this, { spheres: new Spheres(places, kinds, colours), reach: reach + 2 });
    this.stats.count = kinds.length;
    this.canvas.setAttribute("aria-label", title);
    this.soon();
  }

  /** One pointer turns, with shift it moves; two zoom and move. */
  moved(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY], box = this.canvas.getBoundingClientRect();
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size > 1) {
      const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
      const apart = (pointer) => Math.max(20, Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY));
      this.shift = [this.shift[0] + dx / 2 / box.width, this.shift[1] - dy / 2 / box.width];
      this.zoom(apart(event) / apart(before));
    } else if (event.shiftKey || event.buttons & 6) this.shift = [this.shift[0] + dx / box.width, this.shift[1] - dy / box.width];
    else this.turn = turned(this.turn, (Math.PI * dx) / box.width, (Math.PI * dy) / box.width);
    this.soon(true);
  }

  zoom(by) {
    const before = this.closer;
    this.closer = Math.min(CLOSEST, Math.max(0.5, before * by));
    this.shift = this.shift.map((part) => (part * this.closer) / before);
    this.soon(true);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { ArrowLeft: () => (this.turn = turned(this.turn, -STEP, 0)), ArrowRight: () => (this.turn = turned(this.turn, STEP, 0)), ArrowUp: () => (this.turn = turned(this.turn, 0, -STEP)), ArrowDown: () => (this.turn = turned(this.turn, 0, STEP)), "+": () => this.zoom(1.2), "=": () => this.zoom(1.2), "-": () => this.zoom(1 / 1.2), 0: () => this.reset(FRONT) }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
    this.soon(true);
  }

  /** At the next frame; while it moves with as many pixels as can be drawn in time, then as fine as the screen. */
  soon(moving = false) {
    clearTimeout(this.later);
    if (moving) this.later = setTimeout(() => this.soon(), SETTLED_MS);
    this.fine = !moving;
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!this.spheres || !clientWidth || !clientHeight) return;
    const began = performance.now(), ratio = this.fine ? window.devicePixelRatio || 1 : this.ease;
    const [width, height] = [clientWidth, clientHeight].map((edge) => Math.round(edge * ratio)), scale = (this.closer * Math.min(width, height)) / 2 / this.reach;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const image = this.spheres.draw([width, height], this.turn, scale, RADII_ANGSTROM.map((radius) => radius * scale), this.shift.map((part) => part * width));
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    this.stats.drawn++;
    this.stats.last_ms = performance.now() - began;
    if (!this.fine) this.ease = Math.min(1, Math.max(COARSEST, this.ease * Math.sqrt(FLUENT_MS / this.stats.last_ms)));
    this.stats.times.push(this.stats.last_ms);
    if (this.stats.times.length > 500) this.stats.times.shift();
  }
}

let scene = null, shown = "";

/** What is known of the atoms of a series; those that were found are loaded when they are others. */
export async function showAtoms(series) {
  const { atoms } = series, panel = $("atoms-panel");
  panel.hidden = !atoms;
  if (!atoms) return (shown = "");
  const age = atoms.done_at || atoms.note_at, ago = age ? `${duration(Math.max(0, Date.now() / 1000 - age))} ago` : "";
  const found = atoms.count ? `${atoms.count.toLocaleString("en")} atoms from ${atoms.tilts} tilts, ± ${atoms.sigma_angstrom.toFixed(2)} Å${atoms.edition > 1 ? `, edition ${atoms.edition}` : ""}${atoms.outdated ? ", outdated" : ""}` : "";
  say($("atoms-note"), [found, ago].filter(Boolean).join(", "));
  $("atoms-doubts").replaceChildren(...[...(atoms.doubts || []), ...(atoms.note ? [atoms.note] : [])].map((text) => el("li", {}, text)));
  $("atoms-doubts").dataset.level = atoms.doubts?.length ? "doubt" : "note";
  $("atoms-stage").hidden = $("atoms-tools").hidden = !atoms.count;
  const key = atoms.count ? `${series.id} ${atoms.v}` : "";
  if (key === shown) return;
  shown = key;
  if (!key) return;
  const answer = await fetch(`api/v1/series/${series.id}/atoms`), buffer = answer.ok ? await answer.arrayBuffer() : new ArrayBuffer(0);
  if (key !== shown) return; // another one in the meantime
  if (!answer.ok) return (shown = ""); // replaced in the meantime
  const count = buffer.byteLength / 13;
  if (!scene) $("atoms-stage").append((scene = new Scene()).canvas);
  window.aet.atoms = scene.stats;
  scene.reset(FRONT);
  scene.show(new Float32Array(buffer, 0, 3 * count), new Uint8Array(buffer, 12 * count), `${count} atoms of ${series.name}: drag, or arrows, to turn; + and − to zoom`);
  showTools(series, atoms);
}

function showTools(series, atoms) {
  const views = Object.entries(VIEWS).map(([name, turn]) => {
    const button = el("button", { type: "button" }, name);
    button.onclick = () => { scene.reset(turn); scene.soon(); };
    return button;
  });
  const named = atoms.kinds.some((kind) => kind.symbol !== "X");
  const legend = atoms.kinds.map((kind, i) => el("span", { className: "kind", "data-kind": i }, el("i"), `${named ? kind.symbol : atoms.kinds.length > 1 ? `kind ${i + 1}` : "atoms"}: ${kind.count.toLocaleString("en")}`));
  $("atoms-tools").replaceChildren(...legend, ...views, el("a", { href: `api/v1/series/${series.id}/atoms.xyz`, download: `${series.name}.xyz` }, "as XYZ"));
}
