// The page: hears what happens, shows the newest projection, never queues behind a slow network or screen.

import { showAtoms } from "./atoms.js";
import { drawCoverage } from "./coverage.js";
import { $, bytes, degrees, duration, el, say } from "./dom.js";
import { image, json, listen } from "./net.js";
import { showFilm } from "./film.js";
import { command, showAdvice, showHeld, showLog, showPace, showSeries, showStation, showVolume } from "./panels.js";
import { Strip } from "./strip.js";
import { Traces } from "./traces.js";
import { Trio } from "./views.js";

const KINDS = ["raw", "clean", "background"];
const ROWS = 1000; // as the server: of a longer series the last ones
const SHOWN_PX = 1100; // larger frames come binned, until somebody zooms in
const STALE_S = 5;
const LEVELS = { ok: "all well", attention: "please look", trouble: "not working", stale: "stale", wait: "connecting" };

let other = null; // an edition that is looked at in place of the one that is shown
let state = null, series = null, selected = null, following = true, log = [], heardAt = 0, connected = false, refusal = "", allSeries = [];
const stats = (window.aet = { painted: 0, number: null, series: null, tilt_deg: null, times: [], bin: 1, seq: 0 });

const choose = (number) => { follow(number === newest()?.number); select(number); };
const trio = new Trio(() => paintSoon(1)), strip = new Strip(choose), traces = new Traces(choose);
const newest = () => series?.rows.at(-1);

// -- what the server says ----------------------------------------------------------------------------------------------------

function hear(message) {
  heardAt = performance.now();
  connected = true;
  refusal = "";
  stats.seq = message.seq;
  if (message.dropped) openSeries(wanted() || state?.current); // we were too slow: read it anew instead of catching up
  ({ snapshot, state: hearState, frame, look, advice, series: changed, event: noted })[message.type]?.(message);
}

function snapshot(message) {
  log = message.log;
  showLog(log);
  hearState(message);
  loadList();
  openSeries((following && state.current) || wanted() || state.current);
}

function hearState(message) {
  const aside = JSON.stringify(state?.remedies);
  state = message.state;
  if (JSON.stringify(state.remedies) !== aside) refreshSoon(); // put aside, or released: no row tells of it
  // Asked again with every state until it is there: a series is announced a moment before it can be read.
  if (following && state.current && state.current !== series?.id && state.current !== underWay) openSeries(state.current);
  if (series && state.current === series.id && !underWay) {
    const said = state.series.find((row) => row.id === series.id);
    if (said && said.stored > series.stored && !document.hidden) openSeries(series.id); // a message was lost on the way
  }
  showState();
}

function frame(message) {
  const { row } = message;
  row.heard_at = Date.now() / 1000;
  if (message.series !== series?.id) {
    if (following) openSeries(message.series);
    return;
  }
  const old = series.rows.findIndex((other) => other.number === row.number);
  if (old >= 0) series.rows[old] = { ...series.rows[old], ...row };
  else { series.rows.push(row); series.stored++; }
  if (series.rows.length > ROWS) series.rows.splice(0, series.rows.length - ROWS);
  for (const other of series.rows) if (other !== row && other.path === row.path && other.image === row.image && other.number < row.number) other.superseded = 1;
  if (following) select(row.number);
  else refreshSoon();
}

function look(message) {
  const row = message.series === series?.id && series.rows.find((other) => other.number === message.number);
  if (!row) return;
  Object.assign(row, { ...message.figures, ...row });
  refreshSoon();
}

function advice(message) {
  if (message.series !== series?.id) return;
  const { hints, coverage, law, volume, film, atoms, trust } = message;
  Object.assign(series, { hints, coverage, law, volume, film, atoms });
  for (const row of series.rows) row.trust_in_series = trust[row.number] ?? row.trust_in_series;
  refreshSoon();
}

function changed(message) {
  loadList();
  if (message.series === wanted()) openSeries(message.series);
}

function noted(message) {
  log.push(message.event);
  log.splice(0, log.length - 100);
  showLog(log);
}

// -- series ------------------------------------------------------------------------------------------------------------------

let opening = 0, underWay = null;
const wanted = () => underWay || series?.id; // one that was chosen but is not there yet is not given up for news of the one that is shown

async function openSeries(id) {
  if (!id) return;
  const mine = ++opening;
  underWay = id;
  try {
    const found = await json(`api/v1/series/${id}`);
    if (mine !== opening) return; // somebody has chosen another in the meantime
    if (found.id !== series?.id || !found.editions.includes(other)) other = null;
    series = found;
    $("other").hidden = found.editions.length < 2;
    const keep = !following && selected && series.rows.find((row) => row.number === selected.number && row.clean_crc32 === selected.clean_crc32);
    select((keep || newest())?.number);
  } catch (error) {
    say($("which"), `cannot be shown: ${error.message}`);
  } finally {
    if (mine === opening) underWay = null;
  }
}

async function loadList() {
  allSeries = await json("api/v1/series").catch(() => allSeries);
  showLists();
}

function showLists() {
  const said = new Map((state?.series || []).map((row) => [row.id, row]));
  const list = allSeries.map((row) => ({ ...row, ...said.get(row.id) }));
  for (const row of state?.series || []) if (row.stored && !list.some((other) => other.id === row.id)) list.unshift(row);
  showSeries(list, series?.id, (id) => { follow(id === state?.current); openSeries(id); });
  const key = list.map((row) => row.id + row.name).join();
  if ($("pick").dataset.key !== key) {
    $("pick").dataset.key = key;
    $("pick").replaceChildren(...(list.length ? list.map((row) => el("option", { value: row.id }, row.name)) : [el("option", { value: "" }, "no series yet")]));
  }
  if (series) $("pick").value = series.id;
}

function follow(yes) {
  following = yes;
  $("follow").setAttribute("aria-pressed", yes);
  $("follow").textContent = yes ? "Following" : "To the newest";
}

function toNewest() {
  follow(true);
  if (state?.current && state.current !== series?.id) openSeries(state.current);
  else if (newest()) select(newest().number);
}

function step(by) {
  const numbers = strip.numbers(), at = numbers.indexOf(selected?.number), number = numbers[at + by];
  if (number !== undefined) choose(number);
}

// -- showing -----------------------------------------------------------------------------------------------------------------

function select(number) {
  selected = series?.rows.find((row) => row.number === number) || null;
  refreshSoon();
  paintSoon();
}

let refreshing = false;

/** Everything but the images, at most once a frame and only where somebody can see it. */
function refreshSoon() {
  if (refreshing || document.hidden) return;
  refreshing = true;
  setTimeout(() => requestAnimationFrame(() => { refreshing = false; refresh(); }), 60);
}

function refresh() {
  if (!series) return;
  document.querySelector("main").removeAttribute("data-empty");
  const held = (state?.remedies || []).filter((row) => row.series === series.name);
  strip.show(series, selected, held.filter((row) => row.state !== "odd"));
  traces.show(series, selected);
  drawCoverage($("coverage"), $("coverage-words"), { rows: series.rows, coverage: series.coverage, hinted: new Set((series.hints || []).map((hint) => hint.number)), selected, held });
  showAdvice(series, choose);
  showVolume(series);
  showAtoms(series);
  showFilm(series, selected);
  const left = series.stored > series.rows.length ? `the last ${series.rows.length} of ${series.stored}` : `${series.rows.length}`;
  const said = state?.series.find((row) => row.id === series.id), aside = said ? said.held + said.quarantined : held.length;
  say($("strip-note"), `${left}${series.closed ? ", closed" : ""}${aside ? `, ${aside} held or quarantined` : ""}`);
  say($("traces-note"), traces.note());
  const hints = selected ? (series.hints || []).filter((hint) => hint.number === selected.number) : [];
  $("hints").replaceChildren(...hints.map((hint) => el("li", {}, `▲ ${hint.text}`)));
  showLists();
}

let painting = false, again = null;

/** Load and draw the selected projection; while one is under way the newest wish waits, older ones are dropped. */
async function paintSoon(bin = null) {
  if (painting || document.hidden) { again = { bin }; return; }
  if (!selected) return;
  painting = true;
  const row = selected, of = series, edition = other, coarse = Math.max(1, 2 ** Math.ceil(Math.log2(Math.max(...of.shape) / SHOWN_PX)));
  const factor = Math.min(8, bin || (trio.look.zoom > 1.5 && stats.number === row.number ? stats.bin : coarse));
  try {
    const wish = edition === null ? `v=${row.clean_crc32}` : `edition=${edition}`;
    const images = await Promise.all(KINDS.map((kind) => image(`api/v1/series/${of.id}/frames/${row.number}/${kind}?${wish}`, factor)));
    const between = edition === null ? null : await json(`api/v1/series/${of.id}/frames/${row.number}/difference?edition=${edition}`);
    const fetched_at = Date.now() / 1000;
    trio.show(images, { title: degrees(row.tilt_deg), pixelSizeNm: row.pixel_size_nm, keepLook: true });
    painted(row, of, factor, fetched_at, between);
  } catch (error) {
    say($("which"), `projection ${row.number} cannot be shown: ${error.message}`);
  } finally {
    painting = false;
    if (again) { const { bin: wanted } = again; again = null; paintSoon(wanted); }
  }
}

function painted(row, of, bin, fetched_at, between) {
  if (row.heard_at && (stats.number !== row.number || stats.series !== of.id)) {
    // after the next frame: then the pixels are on the screen
    requestAnimationFrame(() => setTimeout(() => {
      const since = (at) => at - row.closed_at;
      stats.times.push({ number: row.number, heard_s: since(row.heard_at), fetched_s: since(fetched_at), painted_s: since(Date.now() / 1000) });
      if (stats.times.length > 500) stats.times.shift();
    }));
  }
  Object.assign(stats, { painted: stats.painted + 1, number: row.number, series: of.id, tilt_deg: row.tilt_deg, bin, edition: between ? between.edition[1] : row.edition ?? 1 });
  say($("between"), between ? difference(between) : "");
  $("other").setAttribute("aria-pressed", between !== null);
  const size = `${of.shape[1]} × ${of.shape[0]} px`, trust = row.trust_in_series == null ? "" : ` · trust ${row.trust_in_series.toFixed(2)}`;
  const note = row.blank ? " · blank: every pixel has the same value" : row.superseded ? " · replaced by newer pixels" : row.excluded ? ` · excluded: ${row.excluded_reason}` : "";
  // what matters most comes first: on a narrow page the end is cut off
  $("which").replaceChildren(el("b", {}, degrees(row.tilt_deg)), `${trust}${note} · ${row.path}${row.image ? ` [${row.image}]` : ""} · ${size}`);
  $("which").title = $("which").textContent;
  showSave(row, of);
  showWord(row, of);
  document.title = `${degrees(row.tilt_deg)} ${of.name} · aet-stream`;
}

/** Two editions of one background in figures. */
function difference({ edition, model, trust, rms, mean, largest, of_contrast }) {
  const counts = (value) => Math.abs(value) >= 100 || value === 0 ? value.toFixed(0) : value.toPrecision(3);
  const figure = (value) => (value == null ? "–" : value.toFixed(2)), share = of_contrast == null ? "" : ` (${(100 * of_contrast).toPrecision(2)} % of the contrast)`;
  return `edition ${edition[1]} (${model[1]}), shown is ${edition[0]} (${model[0]}): they differ by ${counts(rms)} counts rms${share}, ${counts(mean)} on average, ${counts(largest)} at most; trust ${figure(trust[1])}, shown ${figure(trust[0])}`;
}

/** The next edition in place of the one that is shown, and back. */
function compare() {
  const shown = selected?.edition ?? 1, numbers = [shown, ...(series?.editions || []).filter((number) => number !== shown).reverse()];
  const next = numbers[(numbers.indexOf(other ?? shown) + 1) % numbers.length];
  other = next === shown ? null : next;
  paintSoon();
}

/** What a person can say of a stored projection: the page changes nothing itself. */
function showWord(row, of) {
  const id = `${of.name}:${row.number}`, safe = /^[\w.:@%+=,/-]+$/.test(id) ? id : `'${id.replaceAll("'", `'"'"'`)}'`;
  const words = row.excluded ? `restore ${safe}` : `exclude ${safe} --reason "out of focus"`;
  $("word").replaceChildren(el("p", { className: "note" }, row.excluded ? "counts again after:" : "left out of volume, laws and advice after:"),
    command(`aet-stream ${words}${state?.setting || ""}`));
}

function showSave(row, of) {
  const frames = `api/v1/series/${of.id}/frames/${row.number}`;
  const files = KINDS.map((kind) => el("a", { href: `${frames}/${kind}.tiff`, download: `${of.name}_${row.number}_${kind}.tif` }, `${kind} as TIFF`));
  const pictures = trio.views.map((view) => {
    const button = el("button", { type: "button" }, `${view.kind} as shown, PNG`);
    button.onclick = () => view.canvas.toBlob((blob) => { const link = el("a", { href: URL.createObjectURL(blob), download: `${of.name}_${row.number}_${view.kind}.png` }); link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 5000); });
    return button;
  });
  $("save").replaceChildren(...files, ...pictures, el("a", { href: `api/v1/series/${of.id}/summary.csv`, download: `${of.name}.csv` }, "figures as CSV"), el("a", { href: `api/v1/series/${of.id}/report.html`, target: "_blank", rel: "noopener" }, "report of the series"));
}

// -- state and staleness -----------------------------------------------------------------------------------------------------

function showState() {
  const silent = connected ? state?.silence_s ?? 0 : 0, away = heardAt ? (performance.now() - heardAt) / 1000 : 0;
  const stale = heardAt > 0 && (away > STALE_S || silent > STALE_S), level = stale || refusal ? "stale" : state?.level || "wait";
  $("state").dataset.level = level;
  say($("level"), LEVELS[level]);
  $("stale").hidden = !stale && !refusal;
  if (refusal) say($("stale"), `no news come through: ${refusal}`);
  else if (stale) say($("stale"), `stale for ${duration(Math.max(away, silent)).replace(/\.\d+/, "")}: ${away > STALE_S ? "the monitor does not answer" : "the hub is silent"}; is aet-stream running?`);
  if (!state) return;
  const worries = [...(state.troubles || []), ...(state.concerns || []).filter((text) => !/held|quarantined|as odd/.test(text))];
  say($("words"), [state.words, ...worries, ...(state.notes || [])].join("; "));
  const said = state.series.find((row) => row.id === state.current), facts = [];
  if (said) facts.push(`last ${duration(Math.max(0, Date.now() / 1000 - said.last_at)).replace(/\.\d+/, "")} ago`);
  if (state.cadence_s && state.expected > said?.tilts) facts.push(`about ${duration(state.cadence_s * (state.expected - said.tilts))} left`);
  if (state.disk_free_bytes) facts.push(`${bytes(state.disk_free_bytes)} free`);
  const restless = Object.entries(state.roles || {}).filter(([, role]) => role.age_s > STALE_S).map(([name]) => `${name} silent`);
  $("facts").replaceChildren(...[...facts, ...restless].map((text) => el("span", {}, text)));
  say($("about"), `aet-stream ${state.version || ""}, watching ${state.watch_root || "…"}`);
  showPace(state);
  showHeld(state);
  showStation(state.doctor);
  if (series) showLists();
}

function retheme(theme) {
  document.documentElement.dataset.theme = theme;
  traces.rebuild();
  trio.retheme();
}

const system = matchMedia("(prefers-color-scheme: dark)"), themeNow = () => localStorage.getItem("theme") || (system.matches ? "dark" : "light");
system.onchange = () => retheme(themeNow());
$("theme").onclick = () => { localStorage.setItem("theme", themeNow() === "dark" ? "light" : "dark"); retheme(themeNow()); };
$("follow").onclick = toNewest;
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("other").onclick = compare;
$("pick").onchange = (event) => { follow(event.target.value === state?.current); openSeries(event.target.value); };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
  const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), n: toNewest, N: toNewest, End: toNewest, e: compare, E: compare, "+": () => trio.zoom(1.5), "=": () => trio.zoom(1.5), "-": () => trio.zoom(1 / 1.5), 0: () => trio.zoom(0) }[event.key];
  if (act) { event.preventDefault(); act(); }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && state) { hearState({ state }); refreshSoon(); paintSoon(); } });
window.addEventListener("resize", refreshSoon);
retheme(themeNow());
follow(true);
setInterval(showState, 1000);
listen(hear, (why) => { connected = false; refusal = why; showState(); });
