"""One page about one series, to read, print or keep: what was done, figures, pictures, what was held. A single file without scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from aet_stream import __version__
from aet_stream.config import Advice, shareable
from aet_stream.errors import StoreError
from aet_stream.monitor import frames
from aet_stream.monitor.advice import Adviser, Hint
from aet_stream.monitor.coverage import coverage
from aet_stream.monitor.series_cache import Row, SeriesCache, Table
from aet_stream.naming import lines_without_reader, shown
from aet_stream.status import LedgerStatus

MOMENT = "%Y-%m-%d %H:%M:%S UTC"
LARGE_PX, CONTACT = 300, 120
"""Edge of the large pictures; most pictures in the contact sheet."""
STYLE = """
:root{color-scheme:light;font:14px/1.45 system-ui,sans-serif;font-variant-numeric:tabular-nums;color:#18212b}
body{max-width:62rem;margin:1.5rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:1.4rem 0 .4rem}
p{margin:.3rem 0}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.15rem .7rem .15rem 0;border-bottom:1px solid #d5dbe1;vertical-align:top;overflow-wrap:anywhere}
td.n,th.n{text-align:right}th{font-weight:600;white-space:nowrap}.dim{color:#51606e}.warn{color:#825300}
figure{margin:0;text-align:center}img{background:#10151a;width:100%;display:block}.trio{display:grid;grid-template-columns:repeat(3,1fr);gap:.5rem}
.sheet{display:grid;grid-template-columns:repeat(12,1fr);gap:.25rem}.sheet figcaption{font-size:.75rem}
.plots{display:grid;grid-template-columns:repeat(3,1fr);gap:.6rem}svg{width:100%;height:auto}svg text{font-size:9px;fill:#51606e}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}.facts dd{margin:0;overflow-wrap:anywhere}.facts dt{color:#51606e}
details pre{white-space:pre-wrap;font-size:.8rem}tr,figure{break-inside:avoid}@media print{body{margin:0;max-width:none}}
@media(max-width:45rem){th{white-space:normal}th,td{font-size:.7rem;padding-right:.3rem}.plots,.facts{grid-template-columns:minmax(0,1fr)}.sheet{grid-template-columns:repeat(6,1fr)}}
"""
CSP = (
    "default-src 'none'; img-src data:; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)
_FIGURES = {
    "background_mean": "background level, counts",
    "vacuum_noise": "noise of the vacuum, counts",
    "vacuum_residual": "mean of the clean vacuum, counts",
    "trust_in_series": "trust, 0 to 1",
    "total_intensity": "total intensity, counts",
    "mass_x_px": "centre of mass, x, px",
}


OUTDATED = "outdated: the series shows another edition, or other projections, than this volume was made of"
OUTDATED_ATOMS = "outdated: the volume, or what the series shows, is another one than these atoms were made from"
_BACKGROUNDS = {"first": "background by this tilt alone", "series": "by the series", "classical": "by Laplace"}
_PLANES = {"xy": "along the beam", "xz": "across the tilt axis", "yz": "from the side"}


def text(value: Any) -> str:
    """Anything from outside, made harmless."""
    return html.escape(shown(str(value)))


def of_series(
    cache: SeriesCache, name: str, limits: Advice, status: LedgerStatus | None, told: Callable[[int, int], None] | None = None
) -> str:
    """The whole page as HTML: the same as long as the series, its volume and what was put aside are the same.

    Parameters
    ----------
    status : the hub's, for what was held and quarantined; None where the ledger is not at hand
    told : called with (projections seen, of how many)

    Raises
    ------
    StoreError : the series cannot be read
    """
    table = cache.table(name)
    rows = [_seen(cache, name, row, place, len(table.rows), told) for place, row in enumerate(table.rows)]
    current = [row for row in rows if not row.get("superseded") and not row.get("excluded")]
    film = cache.film(name)
    doubts = film["doubts"] if film else []
    hints = Adviser(limits, rows, table.shape[1], lambda row: _small(cache, name, row), doubts).hints()
    all_of_them = "" if len(rows) == table.stored else f", the last {len(rows)} of them below"
    parts = [
        f"<h1>{text(name)}</h1><p class='dim'>{table.stored} projections of {table.shape[1]} × {table.shape[0]} px{all_of_them}; "
        f"{'closed' if table.closed else 'still open'}; report by aet-stream {__version__}</p>",
        _summary(table, rows, limits),
        _trio(cache, name, current),
        "<h2>Over tilt</h2><div class='plots'>" + "".join(_plot(current, key, title) for key, title in _FIGURES.items()) + "</div>",
        _sheet(cache, name, current),
        _film(cache, name, film, current),
        _volume(cache, name),
        _atoms(cache, name),
        _put_aside(status, name),
        _left_out(status, {str(row.get("path", "")).rpartition("/")[0] for row in rows}),
        _advice(hints),
        _rows(rows, hints),
        _settings(table),
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{text(name)}: tilt series</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>"
    )


def _seen(cache: SeriesCache, name: str, row: Row, place: int, count: int, told: Callable[[int, int], None] | None) -> Row:
    try:
        figures = {key: None if value != value else value for key, value in cache.figures(name, row).items()}
    except StoreError:
        figures = {}  # the row's own figures are still true; verify says what is wrong with its pixels
    if told is not None:
        told(place + 1, count)
    return {**figures, **row}


def _small(cache: SeriesCache, name: str, row: Row) -> Any:
    try:
        return cache.small(name, row)
    except StoreError:
        return None


def _summary(table: Table, rows: Sequence[Row], limits: Advice) -> str:
    about, covered = table.about, coverage(rows, limits.same_tilt_deg)
    models = sorted({f"{row.get('model', '')} ({str(row.get('model_sha256', ''))[:12]}) on {row.get('device', '')}" for row in rows})
    gaps = ", ".join(f"{low:+.1f}° to {high:+.1f}°" for low, high in covered.get("gaps_deg", [])) or "none"
    sizes = sorted({row["pixel_size_nm"] for row in rows if row.get("pixel_size_nm")})
    last = max((row["closed_at"] for row in rows if row.get("closed_at") is not None), default=None)
    facts = {
        "opened, closed": f"{_moment(about.get('opened_utc'))}, {_moment(about.get('closed_utc')) or 'not yet'}",
        "last file": "" if last is None else f"{datetime.fromtimestamp(last, UTC):{MOMENT}}",
        "microscope": about.get("microscope") or "not said in the files",
        "pixel size": ", ".join(f"{size:.6g} nm" for size in sizes) or "not said in the files",
        "tilts": f"{covered['from_deg']:+.1f}° to {covered['to_deg']:+.1f}°, usual step {covered['step_deg']:.2f}°, "
        f"missing wedge {covered['missing_wedge_deg']:.0f}°, {covered['repeats']} repeated; gaps: {gaps}"
        if covered
        else "none",
        "tilt axis": ", ".join(sorted({f"{row.get('tilt_axis_deg') or 0:g}°" for row in rows})) + " from the vertical",
        "tilts from": ", ".join(sorted({str(row.get("tilt_source", "")) for row in rows})),
        "background by": "; ".join(models),
        "edition of the background": _edition(table, rows),
        "duplicates, superseded, excluded": ", ".join(str(about.get(key, 0)) for key in ("duplicates", "superseded", "excluded")),
        "written by": about.get("software", ""),
    }
    return "<dl class='facts'>" + "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in facts.items()) + "</dl>"


def _moment(written: str | None) -> str:
    """A time as the series has it, as the report says it."""
    return f"{datetime.fromisoformat(written).astimezone(UTC):{MOMENT}}" if written else ""


def _edition(table: Table, rows: Sequence[Row]) -> str:
    number = int(table.about.get("edition", 1))
    first = sum(row.get("edition", 1) != number for row in rows)
    return f"{number}, by {table.about.get('edition_made_by', 'worker')}" + (f"; {first} rows show edition 1" if first else "")


def _picture(image: Any, percentiles: tuple[float, float] = (0.5, 99.8)) -> str:
    return "data:image/png;base64," + base64.b64encode(frames.grey_png(image, percentiles=percentiles)).decode()


def _trio(cache: SeriesCache, name: str, rows: Sequence[Row]) -> str:
    usable = [row for row in rows if not row.get("blank")]
    if not usable:
        return ""
    row = min(usable, key=lambda row: abs(row["tilt_deg"]))
    try:
        images = {kind: frames.reduced(cache.image(name, row, kind), LARGE_PX) for kind in ("raw", "clean", "background")}
    except StoreError as error:
        return f"<p class='warn'>{text(error)}</p>"
    shown_ones = "".join(
        f"<figure><img alt='{kind}' src='{_picture(image)}'><figcaption>{kind}</figcaption></figure>" for kind, image in images.items()
    )
    return f"<h2>At {row['tilt_deg']:+.1f}°</h2><div class='trio'>{shown_ones}</div>"


def _plot(rows: Sequence[Row], key: str, title: str) -> str:
    """A small scatter plot as SVG."""
    points = [(row["tilt_deg"], row[key]) for row in rows if row.get(key) is not None]
    if not points:
        return ""
    x, y = np.array(points, dtype=float).T
    left, right, low, high = x.min(), x.max(), y.min(), y.max()
    across, up = (right - left) or 1.0, (high - low) or abs(high) or 1.0
    dots = "".join(
        f"<circle cx='{34 + 220 * (a - left) / across:.1f}' cy='{78 - 66 * (b - low) / up:.1f}' r='2' fill='#0b6a72'/>"
        for a, b in zip(x, y, strict=True)
    )
    return (
        f"<figure><svg viewBox='-24 0 286 96' role='img' aria-label='{text(title)}'><rect x='30' y='8' width='228' height='74' fill='none' "
        f"stroke='#d5dbe1'/>{dots}<text x='28' y='15' text-anchor='end'>{high:.3g}</text>"
        f"<text x='28' y='82' text-anchor='end'>{low:.3g}</text>"
        f"<text x='34' y='93'>{left:+.0f}°</text><text x='254' y='93' text-anchor='end'>{right:+.0f}°</text></svg>"
        f"<figcaption>{text(title)}</figcaption></figure>"
    )


def _sheet(cache: SeriesCache, name: str, rows: Sequence[Row]) -> str:
    chosen = sorted(rows, key=lambda row: row["tilt_deg"])
    chosen = chosen[:: -(-len(chosen) // CONTACT)] if chosen else []
    pictures = []
    for row in chosen:
        small = _small(cache, name, row)
        image = "" if small is None else f"<img alt='' src='{_picture(small)}'>"
        pictures.append(f"<figure>{image}<figcaption>{row['tilt_deg']:+.1f}°</figcaption></figure>")
    return f"<h2>Clean projections</h2><div class='sheet'>{''.join(pictures)}</div>"


def _film(cache: SeriesCache, name: str, film: dict[str, Any] | None, rows: Sequence[Row]) -> str:
    """The map, and three backgrounds of the newest projection that it knows."""
    if film is None:
        return ""
    known = [row["number"] for row in rows if row["number"] in film["rows"]]
    try:
        pictures = [("as it has been seen, the tilt axis upwards", cache.film_picture(name, "map"), (2.0, 98.0))]
        if known:
            pictures += [(words, cache.film_picture(name, which, max(known)), (1.0, 99.0)) for which, words in _BACKGROUNDS.items()]
    except StoreError as error:
        return f"<h2>Film</h2><p class='warn'>{text(error)}</p>"
    shown_ones = [
        f"<figure><img alt='{text(words)}' src='{_picture(image, cut)}'><figcaption>{text(words)}</figcaption></figure>"
        for words, image, cut in pictures
    ]
    heights = "; ".join(
        f"{'one that grows, ' if growing else ''}{height:+.0f} px"
        for height, growing in zip(film["heights_px"], film["growing"], strict=True)
    )
    facts = (
        f"height against the tilt axis: {heights} (radius of the particle: {film['radius_px']:.0f} px); turned by {film['turn_deg']:+.1f}°"
    )
    counts = f"of {film['projections']} projections, {film['series']} taken from the series, {film['mixed']} mixed, {film['single']} left"
    changed = ""
    if known:
        row = film["rows"][max(known)]
        changed = (
            f"; at {row['tilt_deg']:+.1f}° it changes {row['changed_counts']:.3g} ± {row['spread_counts']:.3g} counts under the particle"
        )
    doubts = "".join(f"<p class='warn'>{text(doubt)}</p>" for doubt in film["doubts"])
    trio = f"<div class='trio'>{''.join(shown_ones[1:])}</div>" if known else ""
    return f"<h2>Film</h2><p>{text(f'{facts}; {counts}{changed}')}</p>{doubts}<div class='trio'>{shown_ones[0]}</div>{trio}"


def _volume(cache: SeriesCache, name: str) -> str:
    about = cache.volume(name)
    if about is None:
        return "<h2>Volume</h2><p class='dim'>none yet</p>"
    size_nm, resolution_nm = about["voxel_size_nm"], about["resolution_nm"]
    words = [f"{about['kind']} from {about['tilts']} tilts", str(about["method"] or ""), f"voxels of {size_nm:.4g} nm" if size_nm else ""]
    words.append(f"of edition {about['edition']} of the background")
    words.append(f"resolution by its halves {resolution_nm:.3g} nm" if resolution_nm else "")
    try:
        slices = {plane: frames.reduced(cache.slice(name, about["file"], plane), LARGE_PX) for plane in about["planes"]}
    except StoreError as error:
        return f"<h2>Volume</h2><p class='warn'>{text(error)}</p>"
    pictures = "".join(
        f"<figure><img alt='slice {plane}' src='{_picture(image, (1, 99.9))}'><figcaption>{_PLANES[plane]}</figcaption></figure>"
        for plane, image in slices.items()
    )
    doubt = f"<p class='warn'>{text(about['axis_doubt'])}</p>" if about["axis_doubt"] else ""
    doubt += f"<p class='warn'>{OUTDATED}</p>" if about["outdated"] else ""
    return f"<h2>Volume</h2><p>{text(', '.join(filter(None, words)))}</p>{doubt}<div class='trio'>{pictures}</div>"


def _atoms(cache: SeriesCache, name: str) -> str:
    about = cache.atoms(name)
    if about is None:
        return ""
    parts = ["<h2>Atoms</h2>"]
    if "count" in about:
        kinds = ", ".join(f"{kind['count']:,} {kind['symbol']} of {kind['weight']:.3g} counts" for kind in about["kinds"])
        parts.append(
            f"<p>{about['count']:,} atoms, refined against {about['tilts']} projections of edition {about['edition']};"
            f" standard deviation of a coordinate {about['sigma_angstrom']:.3f} Å in the median; {text(kinds)}</p>"
        )
    lines = [*about.get("doubts", []), *([OUTDATED_ATOMS] if about.get("outdated") else []), *([about["note"]] if "note" in about else [])]
    parts += [f"<p class='warn'>{text(line)}</p>" for line in lines]
    try:
        picture = base64.b64encode(cache.atom_file(name, ".png")).decode()
        parts.append(f"<figure><img alt='atoms over slices of the volume' src='data:image/png;base64,{picture}'></figure>")
    except StoreError:
        pass  # none were found, or it is being written
    return "".join(parts)


def _put_aside(status: LedgerStatus | None, name: str) -> str:
    if status is None:
        return "<h2>Held and quarantined</h2><p class='dim'>the ledger was not at hand</p>"
    listed = (("held", status.held), ("quarantined", status.quarantined), ("odd", status.odd))
    aside = [(state, row) for state, rows in listed for row in rows if row.series == name]
    named = sum(state != "odd" for state, _ in aside)
    older = sum(series.held + series.quarantined for series in status.series if series.name == name) - named
    if not aside and older <= 0:
        return "<h2>Held and quarantined</h2><p>nothing</p>"
    lines = "".join(f"<tr><td>{state}</td><td>{text(row.path)} [{row.image}]</td><td>{text(row.reason)}</td></tr>" for state, row in aside)
    more = f"<p class='dim'>{older} older ones are not named here</p>" if older > 0 else ""
    table = f"<table><tr><th>state</th><th>file</th><th>reason</th></tr>{lines}</table>" if lines else ""
    return f"<h2>Held and quarantined</h2>{table}{more}"


def _left_out(status: LedgerStatus | None, folders: set[str]) -> str:
    """Files in the folders of this series, or below them, that nobody reads."""
    inside = tuple(f"{folder}/" for folder in folders if folder)
    rows = [row for row in (status.left_out.no_reader if status else ()) if row[0] in folders or f"{row[0]}/".startswith(inside)]
    return f"<h2>Without a reader</h2>{''.join(f'<p>{text(line)}</p>' for line in lines_without_reader(rows).values())}" if rows else ""


def _advice(hints: Sequence[Hint]) -> str:
    if not hints:
        return "<h2>Advice</h2><p>nothing to retake</p>"
    lines = "".join(f"<tr><td class='n'>{hint.tilt_deg:+.1f}°</td><td>{text(hint.text)}</td><td>{hint.setting}</td></tr>" for hint in hints)
    return f"<h2>Advice</h2><table><tr><th class='n'>tilt</th><th>what</th><th>limit</th></tr>{lines}</table>"


def _rows(rows: Sequence[Row], hints: Sequence[Hint]) -> str:
    marked = {hint.number for hint in hints}

    def number(value: Any) -> str:
        return "–" if value is None else f"{value:.4g}"

    def remarks(row: Row) -> str:
        said = {"blank": row.get("blank"), "superseded": row.get("superseded"), "advice": row["number"] in marked}
        excluded = f"excluded: {text(row.get('excluded_reason') or '')}" if row.get("excluded") else ""
        return " ".join(filter(None, [*(word for word, yes in said.items() if yes), excluded]))

    lines = "".join(
        f"<tr><td class='n'>{row['number']}</td><td class='n'>{row['tilt_deg']:+.2f}</td><td>{text(row.get('tilt_source', ''))}</td>"
        f"<td>{text(row['path'])} [{row['image']}]</td><td class='n'>{number(row.get('background_mean'))}</td>"
        f"<td class='n'>{number(row.get('vacuum_noise'))}</td><td class='n'>{number(row.get('trust_in_series'))}</td>"
        f"<td>{remarks(row)}</td></tr>"
        for row in rows
    )
    heads = ("number", "tilt, °", "from", "file", "background", "noise", "trust", "")
    return f"<h2>Every projection</h2><table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{lines}</table>"


def _settings(table: Table) -> str:
    try:
        config = json.dumps(shareable(json.loads(table.about.get("config", "{}"))), indent=1)  # of old ones, too
    except ValueError:
        config = str(table.about.get("config", ""))
    lines = "\n".join(text(line) for line in config.split("\n"))
    return f"<h2>Settings</h2><details open><summary>as they were when the series was written</summary><pre>{lines}</pre></details>"
