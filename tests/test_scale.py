"""The picture of cost as work grows."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from tests.bench_scale import FIGURES, WORKS, Point, draw, read


def test_it_is_drawn_of_the_lines_that_are_kept(tmp_path: Path) -> None:
    """A panel for each work, with the name of every figure; each line says under which load it was measured, or where it was taken from."""
    found, picture = read(), tmp_path / "scale.svg"
    assert [name for name, by_size in found.items() if len(by_size) < 2] == []
    assert [point for by_size in found.values() for point in by_size.values() if (point.load is None) != bool(point.source)] == []
    with mpl.rc_context({"svg.fonttype": "none"}):
        draw(found, picture)
    text = picture.read_text()
    for name, (_, _, axis) in WORKS.items():
        assert axis in text
        for figure in next(iter(found[name].values())).seconds:
            assert figure in text


def test_the_newest_line_of_a_size_counts(tmp_path: Path) -> None:
    """What is measured again takes the place of what was said before; nothing is lost of the file."""
    lines = tmp_path / "scale.jsonl"
    old = FIGURES.read_bytes()
    lines.write_bytes(old + b'{"work":"ledger","size":10000,"seconds":{"start":0.5},"date":"2030-01-01","load":1.0}\n')
    found = read(lines)
    assert found["ledger"][10_000] == Point("ledger", 10_000, {"start": 0.5}, "2030-01-01", 1.0)
    assert found["waiting"] == read()["waiting"]
