// Figures over tilt or time: one small plot each, with its limit where the configuration has one.

import { $, css, degrees, el, figure } from "./dom.js";

const PLOTS = [
  { key: "background_mean", name: "Background level", unit: "counts" },
  { key: "vacuum_noise", name: "Vacuum noise", unit: "counts" },
  { key: "trust_in_series", name: "Trust", unit: "", limit: "trust_below", range: [0, 1] },
  { key: "total_intensity", name: "Total intensity", unit: "counts" },
  { key: "mass_x_px", name: "Centre of mass, x", unit: "px", law: true },
  { key: "mass_residual_px", name: "Off its law", unit: "px", limit: "drift_above", times: "width" },
];
// Not worth a plot of their own: names, checksums, positions in files.
const NO_FIGURES = new Set(["number", "image", "raw_crc32", "clean_crc32", "tilt_deg", "closed_at", "superseded", "excluded", "angle_order", "blank", "attempts", "pixel_size_nm", "heard_at"]);

export function lawX(law, tilt) {
  const t = (tilt * Math.PI) / 180;
  return law.offset_px + law.cosine_px * Math.cos(t) + law.sine_px * Math.sin(t);
}

function valueOf(row, key, law) {
  if (key !== "mass_residual_px") return row[key] ?? null;
  if (!law || row.mass_x_px == null || row.mass_y_px == null) return row.mass_residual_px ?? null;
  return Math.hypot(row.mass_x_px - lawX(law, row.tilt_deg), row.mass_y_px - law.y_px);
}

export class Traces {
  constructor(choose) {
    this.choose = choose;
    this.plots = new Map();
    this.extra = "";
    $("along").onchange = () => this.rebuild();
    $("more").onchange = (event) => { this.extra = event.target.value; this.rebuild(); };
    new ResizeObserver(() => this.resize()).observe($("traces"));
  }

  /** New figures of the series shown. */
  show(series, selected) {
    this.series = series;
    this.selected = selected;
    this.offerMore();
    this.rows = series.rows.filter((row) => !row.superseded && !row.excluded && row.tilt_deg !== null);
    if ($("along").value === "tilt") this.rows = [...this.rows].sort((a, b) => a.tilt_deg - b.tilt_deg || a.number - b.number);
    const kinds = [...PLOTS, ...(this.extra ? [{ key: this.extra, name: this.extra.replaceAll("_", " "), unit: "" }] : [])];
    for (const kind of kinds) this.showOne(kind);
    this.resize(); // a plot that came first was as wide as all
  }

  offerMore() {
    const shown = new Set(PLOTS.map((plot) => plot.key)), keys = new Set();
    for (const row of this.series.rows.slice(-20)) for (const [key, value] of Object.entries(row)) if (typeof value === "number" && !shown.has(key) && !NO_FIGURES.has(key)) keys.add(key);
    const names = [...keys].sort();
    if (this.offered === names.join()) return;
    this.offered = names.join();
    $("more").replaceChildren(el("option", { value: "" }, "…"), ...names.map((key) => el("option", { value: key }, key.replaceAll("_", " "))));
    $("more").value = names.includes(this.extra) ? this.extra : "";
  }

  rebuild() {
    for (const { plot } of this.plots.values()) plot.destroy();
    this.plots.clear();
    $("traces").replaceChildren();
    if (this.series) this.show(this.series, this.selected);
  }

  resize() {
    for (const { plot, box } of this.plots.values()) {
      const width = box.clientWidth, height = this.height();
      if (width && (plot.width !== width || plot.height !== height)) plot.setSize({ width, height });
    }
  }

  height() {
    return Math.round(8.2 * parseFloat(getComputedStyle(document.documentElement).fontSize));
  }

  showOne(kind) {
    const { law, limits, shape } = this.series, byTilt = $("along").value === "tilt";
    const x = this.rows.map((row, i) => (byTilt ? row.tilt_deg + i * 1e-9 : row.number));
    const y = this.rows.map((row) => valueOf(row, kind.key, law));
    const data = [x, y, kind.law && law ? this.rows.map((row) => lawX(law, row.tilt_deg)) : this.rows.map(() => null)];
    const limit = kind.limit && limits ? limits[kind.limit] * (kind.times === "width" ? shape[1] : 1) : null;
    if (!this.plots.has(kind.key)) this.make(kind);
    const made = this.plots.get(kind.key);
    made.limit = limit;
    made.plot.setData(data);
    const known = y.filter((value) => value !== null).sort((a, b) => a - b);
    const words = known.length ? `${figure(known[0])} to ${figure(known.at(-1))}, median ${figure(known[known.length >> 1])}` : "nothing known yet";
    made.note.textContent = this.selected ? `${figure(valueOf(this.selected, kind.key, law))}${kind.unit ? ` ${kind.unit}` : ""}` : "";
    made.box.setAttribute("aria-label", `${kind.name} over ${byTilt ? "tilt" : "projections"}: ${words} ${kind.unit}`);
  }

  make(kind) {
    const note = el("span"), box = el("div", { role: "img" });
    $("traces").append(el("div", { className: "plot" }, el("h3", {}, kind.name, note), box));
    const size = parseFloat(getComputedStyle(document.documentElement).fontSize), axis = { stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), size: 3 }, font: `${size * 0.8}px system-ui` };
    const byTilt = $("along").value === "tilt", made = { note, box, limit: null };
    const plot = new uPlot({
      width: Math.max(100, box.clientWidth), height: this.height(), legend: { show: false },
      cursor: { sync: { key: "tilts" }, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: false }, y: kind.range ? { range: kind.range } : { range: (u, low, high) => { const room = (high - low || Math.abs(high) || 1) * 0.08; return [low - room, high + room]; } } },
      axes: [{ ...axis, size: size * 1.7, space: size * 3, values: (u, ticks) => ticks.map((tick) => (byTilt ? `${tick}°` : Number.isInteger(tick) ? tick : "")) }, { ...axis, size: size * 3.4, space: size * 1.4, values: (u, ticks) => ticks.map((tick) => figure(tick, 1e5)) }],
      series: [{}, { stroke: css("--accent"), width: 1, points: { show: true, size: Math.round(size * 0.36), fill: css("--accent") } }, { stroke: css("--mark"), width: 1.5, dash: [5, 4], points: { show: false } }],
      hooks: { draw: [(u) => this.drawMarks(u, made)] },
    }, [[], [], []], box);
    plot.over.addEventListener("click", () => { const row = this.rows[plot.cursor.idx]; if (row) this.choose(row.number); });
    made.plot = plot;
    this.plots.set(kind.key, made);
  }

  drawMarks(u, { limit }) {
    const { ctx, bbox } = u;
    ctx.save();
    if (limit !== null && limit >= u.scales.y.min && limit <= u.scales.y.max) {
      const y = u.valToPos(limit, "y", true);
      ctx.strokeStyle = css("--bad");
      ctx.setLineDash([4, 4]);
      ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
    }
    if (this.selected && u.data[0].length) {
      const x = u.valToPos($("along").value === "tilt" ? this.selected.tilt_deg : this.selected.number, "x", true);
      if (x >= bbox.left && x <= bbox.left + bbox.width) {
        ctx.strokeStyle = css("--ink");
        ctx.globalAlpha = 0.55;
        ctx.setLineDash([]);
        ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      }
    }
    ctx.restore();
  }

  note() {
    return this.selected ? `marked: ${degrees(this.selected.tilt_deg)}` : "";
  }
}
