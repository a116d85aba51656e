"""What the first page says is what the pages behind it say; links lead somewhere, and snippets run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.harness import known_image
from tests.test_store import filled

ROOT = Path(__file__).parent.parent
README, FIGURES = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/model-figures.md"))
PAGES = sorted(path for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "adr") for path in folder.glob("*.md"))


@pytest.mark.parametrize(
    ("shown", "estimator"),
    [("nothing done", "nothing"), *((f"`{name}`", name) for name in ("laplace", "gaussian-process", "dncnn-2019", "default"))],
)
def test_the_figures_of_the_readme_are_those_of_the_table(shown: str, estimator: str) -> None:
    """Mean / worst PSNR of the three main sets."""
    row = re.search(rf"^\| {shown}.*? \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    for cell, name in zip(row.group(1).split(" | "), ("published", "hard", "unseen"), strict=True):
        known = re.search(rf"^{name} +{estimator} +([\d.]+) +([\d.]+) ", FIGURES, re.MULTILINE)
        assert known is not None
        assert [float(value) for value in cell.split(" / ")] == pytest.approx([float(value) for value in known.groups()], abs=0.051)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue  # another site
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


PROGRAMS = sorted(
    {name for page in (*PAGES, ROOT / "Makefile") for name in re.findall(r"python -m (tests\.\w+)", page.read_text(encoding="utf-8"))}
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_that_figures_come_from_fit_the_code(program: str) -> None:
    """Most of them measure for minutes, and no other test imports them."""
    module = importlib.import_module(program)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{program}.__main__")
    assert callable(module.main) or program.startswith("tests.test_")


def test_the_snippets_for_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/python.md, each by itself, in a folder with the files that they name; a warning is an error."""
    filled(tmp_path, 5)
    monkeypatch.chdir(tmp_path / "s")
    savemat("np1.mat", {"projections": np.stack([known_image(i, 32) for i in range(2)], axis=-1), "angles": np.array([-2.0, 2.0])})
    np.save("image.npy", known_image(3))
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 5
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/python.md, snippet {number}", "exec"), {})
    assert {"np1.h5", "volume.h5"} <= {path.name for path in Path().iterdir()}
