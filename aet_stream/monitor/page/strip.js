// A tile for every projection, in order of arrival or tilt; what is held or quarantined stands at the end with its reason.

import { $, degrees, el } from "./dom.js";

export class Strip {
  constructor(choose) {
    this.choose = choose;
    this.tiles = new Map();
    this.box = $("strip");
    $("order").onchange = () => this.show(this.series, this.selected, this.held, true);
    this.box.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const numbers = this.numbers(), at = numbers.indexOf(this.selected?.number);
      const number = numbers[Math.max(0, Math.min(numbers.length - 1, at + step))];
      if (number !== undefined) { this.choose(number); this.tiles.get(number)?.focus(); }
    };
  }

  rows() {
    const rows = this.series.rows;
    return $("order").value === "tilt" ? [...rows].sort((a, b) => a.tilt_deg - b.tilt_deg || a.number - b.number) : rows;
  }

  numbers() {
    return this.series ? this.rows().map((row) => row.number) : [];
  }

  show(series, selected, held, afresh = false) {
    if (!series) return;
    if (afresh || this.series?.id !== series.id) {
      this.tiles.clear();
      this.box.replaceChildren();
    }
    Object.assign(this, { series, selected, held });
    const hints = new Map();
    for (const hint of series.hints || []) hints.set(hint.number, [...(hints.get(hint.number) || []), hint.text]);
    const rows = this.rows(), wanted = new Set(rows.map((row) => row.number));
    for (const [number, tile] of this.tiles) if (!wanted.has(number)) { tile.remove(); this.tiles.delete(number); }
    let before = null;
    for (const row of rows) {
      const known = this.tiles.get(row.number), tile = known || this.make(row);
      if (!known) before ? before.after(tile) : this.box.prepend(tile);
      this.mark(tile, row, hints.get(row.number) || []);
      before = tile;
    }
    this.showHeld();
    const tile = selected && this.tiles.get(selected.number);
    if (tile) this.box.scrollLeft = Math.max(0, tile.offsetLeft - this.box.offsetLeft - this.box.clientWidth * (selected.number === rows.at(-1)?.number ? 1 : 0.5) + tile.offsetWidth);
  }

  make(row) {
    const image = row.blank ? el("span", { className: "blank" }, "∅") : el("img", { loading: "lazy", decoding: "async", alt: "", src: `api/v1/series/${this.series.id}/frames/${row.number}/thumb.png?v=${row.clean_crc32}` });
    const tile = el("button", { type: "button", className: "tile", role: "option" }, image, el("small"));
    tile.onclick = () => this.choose(row.number);
    this.tiles.set(row.number, tile);
    return tile;
  }

  mark(tile, row, hints) {
    const [mark, sign] = row.superseded ? ["old", "replaced"] : row.excluded ? ["old", "excluded"] : row.blank ? ["bad", "blank"] : hints.length ? ["hint", `▲ ${degrees(row.tilt_deg)}`] : ["", ""];
    const chosen = this.selected?.number === row.number;
    tile.dataset.mark = mark;
    tile.lastChild.textContent = sign || degrees(row.tilt_deg);
    tile.title = [`${degrees(row.tilt_deg)}, ${row.path}`, ...hints].join("\n");
    tile.setAttribute("aria-label", [`${degrees(row.tilt_deg)}`, mark && sign.replace("▲ ", "advice: "), ...hints].filter(Boolean).join(", "));
    tile.setAttribute("aria-selected", chosen);
    tile.tabIndex = chosen ? 0 : -1;
  }

  showHeld() {
    for (const tile of this.box.querySelectorAll("[data-held]")) tile.remove();
    for (const row of this.held) {
      const tile = el("button", { type: "button", className: "tile", role: "option", tabIndex: -1, title: `${row.path}: ${row.reason}`, "aria-selected": "false", "aria-label": `${row.state}: ${row.path}: ${row.reason}` },
        el("span", { className: "blank" }, row.state === "held" ? "‖" : "✕"), el("small", {}, row.state === "held" ? "held" : "quarant."));
      tile.dataset.held = row.id;
      tile.dataset.mark = row.state === "held" ? "hint" : "bad";
      tile.onclick = () => $("held").focus();
      this.box.append(tile);
    }
  }
}
