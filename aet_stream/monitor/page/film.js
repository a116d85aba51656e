// The film behind the particle: as it has been seen in all tilts together, and what it says of the selected projection.

import { histogram, paint, percentile } from "./picture.js";
import { $, degrees, duration, el, figure, say } from "./dom.js";
import { image } from "./net.js";

const THREE = { first: "this tilt alone", series: "the series", classical: "Laplace" };
const TAKEN = { series: "taken from the series", mixed: "mixed", single: "left as it was" };
let shown = "";

/** Loaded again only when the film is another one, or another projection is selected. */
export async function showFilm(series, selected) {
  const { film } = series, row = film?.rows[selected?.number], key = film ? `${series.id} ${film.v} ${row ? selected.number : ""}` : series.id;
  if (!film) {
    shown = key;
    say($("film-note"), "");
    return $("film").replaceChildren(el("p", { className: "none" }, waited(series)));
  }
  const said = [`${film.projections} tilts`, film.series ? `${film.series} taken` : "", film.mixed ? `${film.mixed} mixed` : "", film.single ? `${film.single} left` : "", `${duration(Math.max(0, Date.now() / 1000 - film.made_at))} ago`];
  say($("film-note"), said.filter(Boolean).join(", "));
  if (key === shown) return;
  shown = key;
  const base = `api/v1/series/${series.id}`, parts = film.doubts.map((text) => el("p", { className: "doubt" }, text));
  try {
    parts.push(await map(base, film, series.id));
    if (row) parts.push(...(await one(base, row, film)));
    else if (selected) parts.push(el("p", { className: "note" }, `${degrees(selected.tilt_deg)} has come since`));
  } catch { shown = ""; } // replaced by a newer one in the meantime
  if (key === shown) $("film").replaceChildren(...parts);
}

/** Why there is none: too few tilts so far, not its time, or not wanted. */
function waited({ closed, rows, film_wanted: wanted }) {
  if (!wanted) return "not looked for (film.enabled); by hand: aet-stream film SERIES";
  const fewest = Math.min(...[-1, 1].map((side) => rows.filter((row) => side * row.tilt_deg > 0).length));
  if (fewest < wanted.tilts_each_side) return `not seen yet: ${wanted.tilts_each_side} tilts on both sides of 0 are needed`;
  if (closed) return "not seen yet: looked for since the series was closed, which takes minutes; aet-stream events says what came of it";
  return wanted.while_growing ? "not seen yet: looked for as coverage grows, and when the series closes" : "not seen yet: looked for when the series closes";
}

/** What has not been seen stays dark. */
async function map(base, film) {
  const [surface, sd] = await Promise.all([image(`${base}/film/map?v=${film.v}`), image(`${base}/film/sd?v=${film.v}`)]);
  const canvas = el("canvas", { role: "img", "aria-label": "The film as it has been seen so far" }), levels = histogram(surface);
  paint(surface, canvas, "grey", [percentile(levels, 2), percentile(levels, 98)]);
  const context = canvas.getContext("2d"), pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < sd.data.length; i++) pixels.data[4 * i + 3] = 255 * Math.min(1, Math.max(0.06, 1.25 * (1 - (sd.offset + sd.scale * sd.data[i]))));
  context.putImageData(pixels, 0, 0);
  const films = film.heights_px.map((height, i) => `${film.growing[i] ? "one that grows, at" : "at"} ${figure(height)} px`);
  const words = `film ${films.join("; ")} from the particle's middle (its radius: ${figure(film.radius_px)} px), tilt axis upwards`;
  return el("figure", {}, el("div", { className: "map" }, canvas), el("figcaption", {}, words));
}

/** Three backgrounds in one window, and what the series changes. */
async function one(base, row, film) {
  const images = await Promise.all(Object.keys(THREE).map((which) => image(`${base}/frames/${row.number}/film/${which}?v=${film.v}`)));
  const levels = histogram(images[1]), span = percentile(levels, 99) - percentile(levels, 1), range = [percentile(levels, 1) - 0.1 * span, percentile(levels, 99) + 0.1 * span];
  const figures = Object.values(THREE).map((words, i) => {
    const canvas = el("canvas", { role: "img", "aria-label": `Background at ${degrees(row.tilt_deg)}: ${words}` });
    paint(images[i], canvas, "grey", range);
    return el("figure", {}, canvas, el("figcaption", {}, words));
  });
  const share = row.taken === "mixed" ? ` (${Math.round(100 * row.share)} % the series)` : "";
  const by = row.share ? `; under the particle it changes by ${figure(row.changed_counts)} counts, ± ${figure(row.spread_counts)}` : "";
  const tried = row.score === null ? "no vacuum to try it by" : `the series leaves ${figure(row.score)} of what this tilt alone leaves open`;
  return [el("p", { className: "note" }, el("b", {}, degrees(row.tilt_deg)), ` ${TAKEN[row.taken]}${share}: ${tried}${by}`), el("div", { className: "three" }, ...figures)];
}
