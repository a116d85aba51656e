"""Mixtures of files: `check` foretells what a run does with every image, for the same reason, and both do what is right."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aet_stream.config import Config
from aet_stream.config_file import load
from aet_stream.foresight import describe_all
from aet_stream.readers.child import ReaderChild
from aet_stream.watch import settle
from tests.mixtures import Mixture, Right
from tests.rehearsal import Ending, Rehearsal

FEW, MORE, MANY, EACH = (1002, 1030, 1138, 1231), range(8), 500, 25
"""Mixtures in the ordinary suite (three begin with a survey), with the thorough one, in the long campaign, and in each of its tests."""
AT_ONCE = (1, 8)
"""Images handed over one by one, or as many as the hub asks for."""
_STATES = {
    "would be stored": "stored",
    "would be held": "held",
    "would be recorded, not stored": "other",
    "would be recorded as a duplicate": "duplicate",
    "would be quarantined": "quarantined",
    "would be set aside": "odd",
}


class Readers:
    """One reading process for every detector that settings ask for: it lives longer than a mixture."""

    def __init__(self) -> None:
        self._children: dict[tuple[str, str], ReaderChild] = {}

    def of(self, *settings: str) -> ReaderChild:
        config = load(None, ["watch.settle_s=0", *settings])
        key = config.series.detector, config.frames.group
        if key not in self._children:
            self._children[key] = ReaderChild.of(config)
        return self._children[key]

    def close(self) -> None:
        for child in self._children.values():
            child.close()


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    readers = Readers()
    yield readers
    readers.close()


def foretold(root: Path, reader: ReaderChild, config: Config) -> tuple[dict[tuple[str, int], Ending], set[str], str]:
    """What `check` says of every image below a folder, of formats without a reader, and all of its words."""
    said: list[str] = []
    describe_all([root], reader, config, say=said.append)
    found: dict[tuple[str, int], Ending] = {}
    unread: set[str] = set()
    for text in said:
        place, *lines = text.split("\n")
        path, image = str(Path(place).relative_to(root)) if place.startswith(str(root)) else "", -1
        for line in lines:
            if match := re.match(r"  \[(\d+)\] ", line):
                image = int(match[1])
            elif match := re.match(rf"      ({'|'.join(_STATES)})(?:: (.*)| at (\S+) deg from \w+)?$", line):
                found[path, image] = Ending(_STATES[match[1]], match[2] or "", float(match[3]) if match[3] else None)
            elif match := re.match(r"  would be quarantined: (.*)", line):
                found[path, 0] = Ending("quarantined", match[1], None)
            elif match := re.match(r"  (?:not complete|still growing, or stopped early): (.*)", line):
                found[path, -1] = Ending("waiting", match[1], None)
            elif match := re.match(r"  (\d+ files? \*.*): no reader", line):
                unread |= {f"{'' if path == '.' else path}  {files}" for files in match[1].split(", ")}
    return found, unread, "\n".join(said)


def agreed(right: Right, run: Ending | None, check: Ending | None) -> bool:
    """Is it what is right, twice, and for the same reason?"""
    if right.state == "waiting":
        return run is not None and check is not None and "zero" in run.reason and "zero" in check.reason
    if run is None or check is None or run.state != right.state or right.words not in run.reason:
        return False
    if right.state == "quarantined":  # the daemon waits before it says so
        return check.state in ("quarantined", "waiting") and run.reason.startswith(check.reason)
    if right.tilt_deg is not None and (run.tilt_deg is None or abs(run.tilt_deg - right.tilt_deg) > 1e-3):
        return False
    return check.state == run.state and (check.reason == run.reason)


def rehearse(seed: int, folder: Path, readers: Readers, at_once: int) -> tuple[int, str]:
    """How many images one mixture has, and what is wrong with any of them, `at_once` of which are handed over at a time."""
    mixture = Mixture(seed, folder / "in")
    reader = readers.of(*mixture.settings)
    with Rehearsal(folder, reader, *mixture.settings) as daemon:
        endings = daemon.run(at_once).endings
        unread = {(place, kind): files for place, kind, files in daemon.core.status().left_out.no_reader}
        config = daemon.config
    said, unread_said, words = foretold(folder / "in", reader, config)
    wrong = []
    for (path, image), right in mixture.right.items():
        waiting = (path, -1)
        run = endings.get(waiting) if right.state == "waiting" else endings.get((path, image))
        check = said.get(waiting) if right.state == "waiting" else said.get((path, image), said.get(waiting))
        if not agreed(right, run, check):
            wrong.append(f"{path}[{image}]\n    right {right}\n    run   {run}\n    check {check}")
    wrong += [f"unknown: {key} {endings[key]}" for key in endings if key not in mixture.right and key[1] >= 0]
    expected = {f"{place}  {files} file{'' if files == 1 else 's'} {kind}" for (place, kind), files in mixture.unread.items()}
    wrong += [] if unread == mixture.unread else [f"without a reader: right {dict(mixture.unread)}, run {unread}"]
    wrong += [] if unread_said == expected else [f"without a reader: right {expected}, check {unread_said}"]
    return len(mixture.right), "\n".join([f"mixture {seed}, {at_once} at once {mixture.settings}", *wrong, words]) if wrong else ""


def disagreements(root: Path, folder: Path, reader: ReaderChild) -> tuple[int, list[str]]:
    """Images of whatever lies below a folder, and those that `check` and a run say different things of."""
    shutil.copytree(root, folder / "in" / root.name)
    with Rehearsal(folder, reader) as daemon:
        endings, config = daemon.run().endings, daemon.config
    said, _, _ = foretold(folder / "in", reader, config)
    shown = {(path, image): run for (path, image), run in endings.items() if image >= 0 and ((path, image) in said or (path, -1) in said)}
    wrong = [
        f"{path}[{image}]: run {run}, check {said.get((path, image), said.get((path, -1)))}"
        for (path, image), run in shown.items()
        if not agreed(Right(run.state), run, said.get((path, image), said.get((path, -1))))
    ]
    wrong += [f"{path}[{image}]: check {said[path, image]}" for path, image in said if image >= 0 and (path, image) not in endings]
    wrong += [f"{path}: run {endings[path, 0]}" for path, image in endings if image == 0 and not {(path, 0), (path, -1)} & said.keys()]
    return len([key for key in endings if key[1] >= 0]), wrong


@pytest.mark.parametrize("kind", ["dm", "mdoc", "mrc", "ncem-emd", "tia", "tiff", "velox"])
def test_check_and_a_run_agree_about_real_files(tmp_path: Path, readers: Readers, test_data: Path, kind: str) -> None:
    """Whatever instruments wrote: the same verdict for the same reason."""
    images, wrong = disagreements(test_data / "formats" / kind, tmp_path, readers.of())
    assert not wrong, "\n".join(wrong)
    assert images or kind == "mdoc"


@pytest.mark.parametrize("at_once", AT_ONCE)
@pytest.mark.parametrize("seed", [*FEW, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in MORE)])
def test_check_and_a_run_agree_about_a_mixture(tmp_path: Path, readers: Readers, seed: int, at_once: int) -> None:
    """Several images, detectors, sidecars, computed images, copies, sizes, what is no image: one verdict and reason, the right ones."""
    images, wrong = rehearse(seed, tmp_path, readers, at_once)
    assert not wrong, wrong
    assert images or seed


@pytest.mark.parametrize("seed", FEW)
def test_a_tree_that_is_begun_before_it_is_scanned_comes_to_the_same(
    tmp_path: Path, readers: Readers, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few files make it a large one."""
    monkeypatch.setattr(settle, "BEGIN_FILES", 1)
    _, wrong = rehearse(seed, tmp_path, readers, max(AT_ONCE))
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("at_once", AT_ONCE)
@pytest.mark.parametrize("first", range(1000, 1000 + MANY, EACH))
def test_check_and_a_run_agree_about_many_mixtures(tmp_path: Path, readers: Readers, first: int, at_once: int) -> None:
    """500 of them in all, each with other files and settings."""
    results = [rehearse(seed, tmp_path / str(seed), readers, at_once) for seed in range(first, first + EACH)]
    assert not [wrong for _, wrong in results if wrong], "\n\n".join(wrong for _, wrong in results if wrong)
    assert sum(images for images, _ in results) > 5 * EACH
