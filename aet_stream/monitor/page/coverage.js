// Tilts as lines through a circle: what is there, what is missing. 0° is up.

import { degrees, el } from "./dom.js";

const C = 100, R = 82;
const at = (deg, r = R) => { const a = (deg * Math.PI) / 180; return [C + r * Math.sin(a), C - r * Math.cos(a)]; };
const line = (deg, className, inner = 0) => {
  const [x1, y1] = inner ? at(deg, inner) : at(deg + 180), [x2, y2] = at(deg);
  return el("svg:line", { x1, y1, x2, y2, class: className });
};
const sector = (from, to, className) => {
  const [x1, y1] = at(from), [x2, y2] = at(to);
  return el("svg:path", { d: `M${C} ${C}L${x1} ${y1}A${R} ${R} 0 ${to - from > 180 ? 1 : 0} 1 ${x2} ${y2}Z`, class: className });
};

/** Draw into `box`; returns the same in words. */
export function drawCoverage(box, words, { rows, coverage, hinted, selected, held }) {
  const svg = el("svg:svg", { viewBox: "0 0 200 200", role: "img", "aria-labelledby": words.id });
  box.replaceChildren(svg);
  svg.append(el("svg:circle", { cx: C, cy: C, r: R, class: "ring" }));
  if (!coverage || coverage.from_deg === undefined) {
    words.textContent = "no tilt yet";
    return;
  }
  const { from_deg: from, to_deg: to, step_deg: step, gaps_deg: gaps, repeats, wedge_deg: [low, high], missing_wedge_deg: wedge } = coverage;
  for (const turn of [0, 180]) svg.append(sector(low + turn, high + turn, "wedge"));
  for (const [a, b] of gaps) for (const turn of [0, 180]) svg.append(sector(a + turn, b + turn, "gap"));
  const seen = new Map();
  for (const row of rows) {
    if (row.superseded || row.blank || row.excluded || row.tilt_deg === null) continue;
    svg.append(line(row.tilt_deg, `tilt${hinted.has(row.number) ? " hinted" : ""}`));
    const key = row.tilt_deg.toFixed(1), times = (seen.get(key) || 0) + 1;
    seen.set(key, times);
    if (times > 1) { const [cx, cy] = at(row.tilt_deg, R - 6 * (times - 1)); svg.append(el("svg:circle", { cx, cy, r: 3.4, class: "repeat" })); }
  }
  for (const row of held) if (row.tilt_deg !== null && row.tilt_deg !== undefined) svg.append(line(row.tilt_deg, "held", 20));
  if (selected && selected.tilt_deg !== null) svg.append(line(selected.tilt_deg, "now"));
  for (const deg of [-90, -60, -30, 0, 30, 60, 90]) {
    const [x, y] = at(deg, R + 9);
    svg.append(el("svg:text", { x, y: y + 3, "text-anchor": "middle" }, `${deg}`));
  }
  const gapWords = gaps.length ? `gaps: ${gaps.map(([a, b]) => `${degrees(a)} to ${degrees(b)}`).join(", ")}` : "no gaps";
  const repeatWords = repeats ? `${repeats} repeated (circles)` : "no repeats";
  words.textContent = `${degrees(from)} to ${degrees(to)}, a tilt every ${step.toFixed(1)}°, missing wedge ${wedge.toFixed(0)}° (shaded), ${gapWords}, ${repeatWords}`;
}
