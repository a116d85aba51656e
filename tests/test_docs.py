"""What the first page says is what the page behind it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README, MODEL = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/model.md"))


@pytest.mark.parametrize(
    ("shown", "estimator"),
    [("nothing done", "nothing"), *((f"`{name}`", name) for name in ("laplace", "gaussian-process", "dncnn-2019", "default"))],
)
def test_the_figures_of_the_readme_are_those_of_the_table(shown: str, estimator: str) -> None:
    """Mean / worst PSNR of the three main sets."""
    row = re.search(rf"^\| {shown}.*? \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    for cell, name in zip(row.group(1).split(" | "), ("published", "hard", "unseen"), strict=True):
        known = re.search(rf"^{name} +{estimator} +([\d.]+) +([\d.]+) ", MODEL, re.MULTILINE)
        assert known is not None
        assert [float(value) for value in cell.split(" / ")] == pytest.approx([float(value) for value in known.groups()], abs=0.051)
