// The quieter panels: pace, volume, held and quarantined, series, log, advice.

import { paint, histogram, windowOf } from "./picture.js";
import { $, degrees, duration, el, figure, moment, parts, say } from "./dom.js";
import { image } from "./net.js";

const STAGES = { settle: "settling", read: "reading", queue: "queue", network: "background", commit: "to disk", total: "in all" };
const WAITING = { offered: "offered", waiting: "waiting", working: "in work", done: "to store" };

export function showPace(state) {
  const stages = state.latency?.stages || {}, cadence = state.cadence_s, queue = state.queue || {};
  const most = Math.max(...Object.values(stages).map((s) => s.p99_s), 1e-3);
  say($("pace-note"), [cadence ? `a tilt every ${duration(cadence)}` : "", state.headroom >= 1.5 ? `could run ${state.headroom.toPrecision(2) * 1}× faster` : state.headroom ? "hardly faster than the microscope" : ""].filter(Boolean).join("; "));
  const boxes = el("div", { className: "queue" });
  for (const [key, name] of Object.entries(WAITING)) boxes.append(el("div", {}, el("b", {}, `${queue[key] ?? 0}`), el("span", {}, name)));
  const table = el("table", { className: "stages" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "stage"), el("td"), el("th", { scope: "col" }, "median"), el("th", { scope: "col" }, "99 %"))));
  const body = el("tbody");
  for (const [key, name] of Object.entries(STAGES)) {
    if (!stages[key]) continue;
    const fill = el("i");
    fill.style.width = `${Math.min(100, (100 * stages[key].p50_s) / (cadence && key === "total" ? Math.max(cadence, stages[key].p50_s) : most))}%`;
    body.append(el("tr", {}, el("th", { scope: "row" }, name), el("td", { className: "bar" }, el("i", {}, fill)), el("td", {}, duration(stages[key].p50_s)), el("td", {}, duration(stages[key].p99_s))));
  }
  table.append(body);
  $("pace").replaceChildren(boxes, ...(body.children.length ? [table] : [el("p", { className: "none" }, "no projection yet")]), crew(state.workers || []));
}

/** Who works, here and on other computers (`theirs:name`). */
function crew(workers) {
  const heads = ["who", "does", "done", "each"].map((name) => el("th", { scope: "col" }, name)), body = el("tbody");
  for (const { name, does, done, lost, turn_s, compute_s } of workers) {
    const each = turn_s == null ? "" : duration(turn_s), way = turn_s == null ? "" : `${duration(compute_s)} of it computing, the rest on its way`;
    const figures = done === undefined ? [] : [el("td", {}, `${done}`), el("td", { title: way }, each)];
    const doing = el("td", { className: does === "gone" ? "gone" : "", colSpan: done === undefined ? 3 : 1 }, `${does}${lost ? `; ${lost} to others` : ""}`);
    body.append(el("tr", {}, el("th", { scope: "row" }, name), doing, ...figures));
  }
  return el("table", { className: "crew", hidden: !workers.length }, el("thead", {}, el("tr", {}, ...heads)), body);
}

const PLANES = { xy: "along the beam", xz: "across the tilt axis", yz: "from the side" };
let volumeShown = "";

/** Orthoslices of the newest preview or reconstruction; loaded again only when it is another one. */
export async function showVolume(series) {
  const { volume } = series, key = volume ? `${series.id} ${volume.v}` : "";
  if (!volume) {
    volumeShown = key;
    say($("volume-note"), "");
    $("volume").replaceChildren(el("p", { className: "none" }, "none yet: it is made once the series has closed"));
    return;
  }
  const age = volume.done_at ? `, ${duration(Math.max(0, Date.now() / 1000 - volume.done_at))} ago` : "";
  say($("volume-note"), `${volume.kind}${volume.tilts ? ` from ${volume.tilts} tilts` : ""}${volume.edition > 1 ? `, edition ${volume.edition}` : ""}${age}${volume.outdated ? ", outdated" : ""}`);
  if (key === volumeShown) return;
  if (!volumeShown.startsWith(`${series.id} `)) $("volume").replaceChildren(); // no other series' slices under this one's name
  volumeShown = key;
  const figures = volume.axis_doubt ? [el("p", { className: "doubt" }, volume.axis_doubt)] : [];
  for (const plane of Object.keys(volume.planes)) {
    try {
      const slice = await image(`api/v1/series/${series.id}/volume/${plane}`), canvas = el("canvas", { role: "img", "aria-label": `Slice ${PLANES[plane]}` });
      paint(slice, canvas, "grey", windowOf(histogram(slice), "grey", 1, 99.9));
      figures.push(el("figure", {}, canvas, el("figcaption", {}, PLANES[plane])));
    } catch { volumeShown = ""; } // replaced by a newer one in the meantime
  }
  if (key === volumeShown || !volumeShown) $("volume").replaceChildren(...figures);
}

/** A line to type in a terminal, and a button that copies it. */
export function command(text) {
  const copy = el("button", { type: "button" }, "Copy");
  copy.onclick = () => {
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => (copy.textContent = "Copied"));
    else getSelection().selectAllChildren(copy.previousElementSibling); // browsers give the clipboard to HTTPS and loopback only
  };
  return el("p", { className: "command" }, el("code", {}, text), copy);
}

export function showHeld(state) {
  const rows = state.remedies || [], older = state.unlisted || 0, waiting = state.waiting_for || [], key = JSON.stringify([rows, older, waiting]);
  if ($("held-list").dataset.key === key) return;
  $("held-list").dataset.key = key;
  say($("held-note"), rows.length ? `the files themselves are untouched${older ? `; ${older} older ones are named when these are dealt with` : ""}` : "");
  if (!rows.length && !waiting.length) return $("held-list").replaceChildren(el("p", { className: "none" }, "nothing: every complete file is stored or a known duplicate"));
  const incomplete = waiting.map(({ path, lacks, since }) => el("div", { className: "case", "data-state": "waiting" },
    el("p", {}, el("span", { className: "tag" }, "waiting"), " ", el("b", {}, path)),
    el("p", {}, `${lacks || "for its writer"}; since ${new Date(since * 1000).toLocaleTimeString([], { hourCycle: "h23" })}`)));
  $("held-list").replaceChildren(...incomplete, ...rows.map((row) => {
    return el("div", { className: "case" , "data-state": row.state },
      el("p", {}, el("span", { className: "tag" }, row.state), " ", el("b", {}, `${row.path}${row.image ? ` [${row.image}]` : ""}`)),
      el("p", {}, row.reason), el("p", { className: "note" }, row.remedy),
      row.command ? command(row.command) : null, row.discard ? el("p", { className: "note" }, "or, if nobody wants it") : null, row.discard ? command(row.discard) : null);
  }));
}

/** What the doctor found; what is well is named in one line. */
export function showStation(doctor) {
  const key = JSON.stringify(doctor || null);
  if ($("station").dataset.key === key) return;
  $("station").dataset.key = key;
  if (!doctor) return $("station").replaceChildren(el("p", { className: "none" }, "not examined yet"));
  const every = doctor.results.flatMap((result) => result.findings.map((finding) => ({ check: result.check, ...finding })));
  const wrong = every.filter((finding) => finding.state !== "ok").sort((a, b) => (a.state === "fail" ? 0 : 1) - (b.state === "fail" ? 0 : 1));
  const well = doctor.results.filter((result) => result.findings.every((finding) => finding.state === "ok")).map((result) => result.check);
  say($("station-note"), `examined ${moment(doctor.at)}`);
  $("station").replaceChildren(
    ...wrong.map((finding) => el("div", { className: "case", "data-state": finding.state === "fail" ? "quarantined" : "held" },
      el("p", {}, el("span", { className: "tag" }, finding.state === "fail" ? "fails" : "warning"), " ", el("b", {}, finding.check)),
      el("p", {}, finding.said), el("p", { className: "note" }, finding.remedy))),
    el("p", { className: wrong.length ? "note" : "well" }, `${wrong.length ? "in order" : "✓ in order"}: ${well.join(", ")}`));
}

export function showSeries(list, shownId, open) {
  const key = JSON.stringify([list, shownId]);
  if ($("series-list").dataset.key === key) return;
  $("series-list").dataset.key = key;
  const body = el("tbody", {}, ...list.map((row) => {
    const button = el("button", { type: "button" }, ...parts(row.name));
    button.onclick = () => open(row.id);
    const line = el("tr", {}, el("td", {}, button), el("td", {}, row.state || "on disk"), el("td", { className: "n" }, `${row.tilts ?? ""}`), el("td", { className: "n" }, row.held || row.quarantined ? `${(row.held || 0) + (row.quarantined || 0)}` : ""),
      el("td", { className: "n" }, row.last_at ? moment(row.last_at * 1000) : ""));
    if (row.id === shownId) line.setAttribute("aria-current", "true");
    return line;
  }));
  const head = el("thead", {}, el("tr", {}, ...["series", "state", "tilts", "held", "last"].map((name, i) => el("th", { scope: "col", className: i > 1 ? "n" : "" }, name))));
  $("series-list").replaceChildren(list.length ? el("table", { className: "list" }, head, body) : el("p", { className: "none" }, "none yet"));
}

export function showLog(lines) {
  $("log").replaceChildren(...(lines.length ? [...lines].reverse().slice(0, 100).map((line) => el("li", {}, el("time", {}, new Date(line.t * 1000).toLocaleTimeString()), el("span", {}, line.what), el("span", {}, line.text.startsWith(`${line.series}/`) ? line.text : [line.series, line.text].filter(Boolean).join(": ")))) : [el("li", {}, "nothing held, quarantined or closed since the monitor was started")]));
}

const broken = (hint) => `${figure(hint.figure)} ${hint.unit}; limit ${figure(hint.limit)} (${hint.setting})`;

export function showAdvice(series, choose) {
  const hints = series.hints || [], key = series.id + JSON.stringify(hints);
  if ($("advice").dataset.key === key) return;
  $("advice").dataset.key = key;
  say($("advice-note"), hints.length ? `${new Set(hints.map((hint) => hint.number)).size} of ${series.rows.length} tilts` : "");
  $("advice").replaceChildren(...(hints.length ? hints.slice(0, 60).map((hint) => {
    const button = el("button", { type: "button" }, el("b", {}, `▲ ${degrees(hint.tilt_deg)} `), hint.text, el("small", {}, hint.setting ? broken(hint) : ""));
    button.onclick = () => choose(hint.number);
    return el("li", {}, button);
  }) : [el("li", { className: series.rows.length ? "well" : "none" }, series.rows.length ? "✓ nothing to retake" : "nothing yet")]));
}
