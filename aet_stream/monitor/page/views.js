// raw | clean | background: three images with one zoom, each with its colours and contrast.

import { MAPS } from "./colour.js";
import { $, css, el, figure } from "./dom.js";
import { histogram, paint, scaleBar, value, windowOf } from "./picture.js";

const KINDS = ["raw", "clean", "background"];
const dark = () => document.documentElement.dataset.theme === "dark";

class View {
  constructor(kind, trio) {
    this.kind = kind;
    this.trio = trio;
    this.image = null;
    this.offscreen = document.createElement("canvas");
    this.canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": `${kind}: nothing yet` });
    this.wait = el("span", { className: "wait" }, "no projection yet");
    this.map = el("select", { "aria-label": `Colours of ${kind}` }, ...MAPS.map((name) => el("option", { value: name }, name)));
    this.map.value = kind === "background" ? this.diverging() : "grey";
    this.low = el("input", { type: "range", min: 0, max: 20, step: 0.1, value: 0.3, "aria-label": `${kind}: black at this percentile` });
    this.high = el("input", { type: "range", min: 80, max: 100, step: 0.1, value: 99.8, "aria-label": `${kind}: white at this percentile` });
    this.counts = el("canvas", { role: "img", "aria-label": `Histogram of ${kind}` });
    this.range = el("span", { className: "which" });
    this.figure = el("figure", { className: "view", id: `view-${kind}` },
      el("figcaption", {}, el("b", {}, kind), this.map, this.range),
      el("div", { className: "stage" }, this.canvas, this.wait),
      el("div", { className: "window" }, this.counts, this.low, this.high));
    for (const control of [this.map, this.low, this.high]) control.oninput = () => trio.paint();
  }

  diverging() {
    return dark() ? "blue-black-red" : "blue-white-red";
  }

  take(image) {
    this.image = image;
    this.histogram = histogram(image);
    this.wait.hidden = true;
  }

  window(width = null) {
    return windowOf(this.histogram, this.map.value, +this.low.value, +this.high.value, width);
  }

  paint(width) {
    if (!this.image) return;
    [this.black, this.white] = this.window(width);
    paint(this.image, this.offscreen, this.map.value, [this.black, this.white]);
    this.range.textContent = `${figure(this.black)} … ${figure(this.white)}`;
    this.canvas.setAttribute("aria-label", `${this.kind}, ${this.trio.title}: shown from ${figure(this.black)} to ${figure(this.white)} counts`);
    this.drawHistogram();
    this.draw();
  }

  drawHistogram() {
    const { counts, low, high } = this.histogram, canvas = this.counts, context = canvas.getContext("2d");
    canvas.width = 160;
    canvas.height = 32;
    const most = Math.log1p(Math.max(...counts));
    context.fillStyle = css("--dim");
    for (let x = 0; x < 160; x++) {
      let sum = 0;
      for (let i = Math.floor((x * counts.length) / 160); i < ((x + 1) * counts.length) / 160; i++) sum = Math.max(sum, counts[i]);
      const height = (Math.log1p(sum) / most) * 32;
      context.fillRect(x, 32 - height, 1, height);
    }
    context.fillStyle = css("--mark");
    for (const at of [this.black, this.white]) context.fillRect(Math.max(0, Math.min(158, ((at - low) / (high - low || 1)) * 160)), 0, 2, 32);
  }

  /** Where image pixels land on the canvas: [scale, x, y] in device pixels. */
  place() {
    const { zoom, x, y } = this.trio.look, { width, height } = this.canvas;
    const scale = zoom * Math.min(width / this.image.width, height / this.image.height);
    return [scale, width / 2 - x * this.image.width * scale, height / 2 - y * this.image.height * scale];
  }

  draw() {
    const canvas = this.canvas, box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const width = Math.round(box.width * ratio), height = Math.round(box.height * ratio);
    if (!this.image || !width) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), [scale, x, y] = this.place();
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = scale < 1.5;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.offscreen, x, y, this.image.width * scale, this.image.height * scale);
    this.drawBar(context, scale, width, height, ratio);
  }

  drawBar(context, scale, width, height, ratio) {
    const perPixel = scale / this.image.bin; // canvas pixels per detector pixel
    const [length, text] = scaleBar(width / perPixel, this.trio.pixelSizeNm), long = length * perPixel;
    const at = 10 * ratio, thick = 4 * ratio, size = 12 * ratio * Math.max(1, parseFloat(getComputedStyle(document.documentElement).fontSize) / 15);
    context.font = `600 ${size}px system-ui, sans-serif`;
    const wide = Math.max(long, context.measureText(text).width);
    context.fillStyle = "#000a";
    context.fillRect(at - 5 * ratio, height - at - size - thick - 5 * ratio, wide + 10 * ratio, size + thick + 10 * ratio);
    context.fillStyle = "#fff";
    context.fillRect(at, height - at - thick, long, thick);
    context.fillText(text, at, height - at - thick - 3 * ratio);
  }

  /** Detector pixel [x, y] under a mouse position, or null. */
  pixel(event) {
    if (!this.image) return null;
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width, [scale, x0, y0] = this.place();
    const x = Math.floor(((event.clientX - box.left) * ratio - x0) / scale), y = Math.floor(((event.clientY - box.top) * ratio - y0) / scale);
    return x >= 0 && y >= 0 && x < this.image.width && y < this.image.height ? [x, y] : null;
  }
}

/** The three views together. `finer` is called when zooming asks for more pixels than are here. */
export class Trio {
  constructor(finer) {
    this.look = { zoom: 1, x: 0.5, y: 0.5 };
    this.finer = finer;
    this.title = "";
    this.pixelSizeNm = null;
    this.views = KINDS.map((kind) => new View(kind, this));
    $("trio").append(...this.views.map((view) => view.figure));
    for (const view of this.views) this.listen(view);
    $("scale").onchange = () => this.paint();
    $("whole").onclick = () => this.zoom(0);
    $("closer").onclick = () => this.zoom(1.5);
    $("farther").onclick = () => this.zoom(1 / 1.5);
    new ResizeObserver(() => this.draw()).observe($("trio"));
  }

  /** Show three images of one projection at once, so that nothing on the screen belongs to another tilt. */
  show(images, { title, pixelSizeNm, keepLook }) {
    Object.assign(this, { title, pixelSizeNm });
    if (!keepLook) this.look = { zoom: 1, x: 0.5, y: 0.5 };
    this.views.forEach((view, i) => view.take(images[i]));
    this.paint();
  }

  paint() {
    if (!this.views[0].image) return;
    const widths = this.views.map((view) => { const [black, white] = view.window(); return white - black; });
    const width = $("scale").value === "same" ? Math.max(...widths) : null;
    for (const view of this.views) view.paint(width);
  }

  draw() {
    for (const view of this.views) view.draw();
  }

  retheme() {
    const view = this.views[2];
    if (view.map.value.startsWith("blue-")) view.map.value = view.diverging();
    this.paint();
  }

  zoom(factor, at = [0.5, 0.5]) {
    const { look } = this, before = look.zoom;
    look.zoom = factor === 0 ? 1 : Math.min(64, Math.max(1, look.zoom * factor));
    if (look.zoom === 1) Object.assign(look, { x: 0.5, y: 0.5 });
    else for (const [i, axis] of ["x", "y"].entries()) look[axis] += (at[i] - 0.5) * (1 / before - 1 / look.zoom);
    this.pan(0, 0);
    const view = this.views[0];
    if (view.image && view.image.bin > 1 && view.place()[0] > 1.5) this.finer();
  }

  pan(x, y) {
    const { look } = this, reach = 0.5 / look.zoom;
    look.x = Math.min(1 - reach, Math.max(reach, look.x + x / look.zoom));
    look.y = Math.min(1 - reach, Math.max(reach, look.y + y / look.zoom));
    this.draw();
  }

  listen(view) {
    const { canvas } = view, inBox = (event) => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(event.deltaY < 0 ? 1.25 : 0.8, inBox(event)); }, { passive: false });
    canvas.ondblclick = () => this.zoom(0);
    let grip = null;
    canvas.onpointerdown = (event) => { grip = inBox(event); canvas.setPointerCapture(event.pointerId); };
    canvas.onpointerup = () => (grip = null);
    canvas.onpointermove = (event) => {
      if (grip && event.buttons) {
        const now = inBox(event);
        this.pan(grip[0] - now[0], grip[1] - now[1]);
        grip = now;
      }
      this.read(view.pixel(event));
    };
    canvas.onpointerleave = () => this.read(null);
    canvas.onkeydown = (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (!step || this.look.zoom === 1) return; // whole image: the arrows choose another projection
      event.preventDefault();
      event.stopPropagation();
      this.pan(...step);
    };
  }

  read(at) {
    const out = $("readout");
    if (!at) return out.replaceChildren("\u00a0");
    const { bin } = this.views[0].image, [x, y] = at, nm = this.pixelSizeNm;
    const where = `x ${x * bin}, y ${y * bin} px${nm ? ` (${figure(x * bin * nm)}, ${figure(y * bin * nm)} nm)` : ""}${bin > 1 ? `, mean of ${bin} × ${bin}` : ""}: `;
    const parts = this.views.flatMap((view) => [`${view.kind} `, el("b", {}, figure(value(view.image, x, y))), "  "]);
    out.replaceChildren(where, ...parts, "counts");
  }
}
