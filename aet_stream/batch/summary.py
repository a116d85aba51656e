"""What became of every series: one table for a terminal, one page for a browser, the same figures as JSON."""

from __future__ import annotations

import html
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
from rich.console import Console
from rich.table import Table

from aet_stream import __version__
from aet_stream.naming import SERIES_FILE, shown

if TYPE_CHECKING:
    from aet_stream.batch.run import Progress

PAGE, FIGURES = "batch.html", "batch.json"
"""In the output folder."""
_COLUMNS = (
    "series",
    "state",
    "projections",
    "held",
    "quarantined",
    "odd",
    "edition",
    "trust",
    "resolution px",
    "atoms",
    "seconds",
    "remarks",
)
_WIDTH = 160


class Row(msgspec.Struct, frozen=True):
    """One series."""

    name: str
    source: str
    state: str
    """`done`, `up to date`, `failed` or `not finished`."""
    did: tuple[str, ...]
    """Stages of this run."""
    seconds: float
    projections: int | None
    held: int | None
    quarantined: int | None
    odd: int | None
    duplicates: int | None
    others: int | None
    edition: int | None
    trust: float | None
    resolution_px: float | None
    atoms: int | None
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, series: Progress) -> Row:
        figures = msgspec.structs.asdict(series.figures)
        remarks = (*([series.error] if series.error else []), *figures.pop("remarks"), *series.nones)
        state = "failed" if series.error else "not finished" if not series.ended else "done" if series.did else "up to date"
        figures.pop("none")
        job = series.job
        return cls(job.name, job.root, state, tuple(series.did), round(series.seconds, 2), **figures, remarks=remarks)

    def cells(self) -> list[str]:
        """As text, in the order of the columns."""
        values = (self.projections, self.held, self.quarantined, self.odd, self.edition, self.trust, self.resolution_px, self.atoms)
        figures = ["" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        first = shown(self.remarks[0]) + (f" (and {len(self.remarks) - 1} more)" if len(self.remarks) > 1 else "") if self.remarks else ""
        return [shown(self.name), self.state, *figures, f"{self.seconds:.1f}", first]


def in_words(series: Progress) -> str:
    """One series that is done."""
    row = Row.of(series)
    words = [f"{row.projections} projections"]
    words += [f"{value} {name}" for name, value in (("held", row.held), ("quarantined", row.quarantined), ("odd", row.odd)) if value]
    return f"{', '.join(words)}, {row.seconds:.1f} s ({', '.join(row.did)})"


def in_all(rows: list[Row]) -> str:
    """One line: how many ended how."""
    counts = {state: sum(row.state == state for row in rows) for state in ("done", "up to date", "failed", "not finished")}
    return f"{len(rows)} series: " + (", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none")


def table(rows: list[Row], colour: bool) -> str:
    """For a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        made.add_column(column, overflow="fold", justify="left" if column in ("series", "state", "remarks") else "right")
    for row in rows:
        made.add_row(*row.cells(), style="red" if row.state == "failed" else None)
    console = Console(file=io.StringIO(), width=_WIDTH, markup=False, highlight=False, force_terminal=colour, no_color=not colour)
    console.print(made)
    console.print(in_all(rows))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #8884 }
th:first-child, td:first-child, .words { text-align: left; overflow-wrap: anywhere }
tr.failed td:nth-child(2) { font-weight: bold; color: light-dark(#a00, #f88) }
ul { margin: 0; padding-left: 1.1rem }
"""


def page(rows: list[Row], output: Path, seconds: float) -> str:
    """A page that needs nothing else; it links to what lies beside it."""
    heads = "".join(f'<th scope="col"{_words(column)}>{html.escape(column)}</th>' for column in _COLUMNS)
    body = "\n".join(_line(row, output) for row in rows)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(shown(output.name))}: a batch</title><style>{_STYLE}</style></head>
<body><h1>{html.escape(shown(str(output)))}</h1>
<p>{html.escape(in_all(rows))}; {duration(seconds)} on {when}, aet_stream {__version__}. The same as <a href="{FIGURES}">JSON</a>.</p>
<table><thead><tr>{heads}</tr></thead><tbody>
{body}
</tbody></table></body></html>
"""


def _words(column: str) -> str:
    return ' class="words"' if column in ("series", "state", "remarks") else ""


def _line(row: Row, output: Path) -> str:
    name, state, *figures = row.cells()[:-1]
    first = html.escape(name)
    if (output / row.name / SERIES_FILE).exists():
        first = f'<a href="{html.escape(quote(row.name))}/{SERIES_FILE}">{first}</a>'
    for file in ("report.html", "reconstruction.png", "atoms.png"):
        if (output / row.name / file).exists():
            first += f' <a href="{html.escape(quote(row.name))}/{file}">{file.partition(".")[0]}</a>'
    items = "".join(f"<li>{html.escape(shown(remark))}</li>" for remark in row.remarks)
    remarks = f"<ul>{items}</ul>" if items else ""
    cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in figures)
    kind = ' class="failed"' if row.state == "failed" else ""
    return f'<tr{kind}><td>{first}</td><td class="words">{state}</td>{cells}<td class="words">{remarks}</td></tr>'


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
