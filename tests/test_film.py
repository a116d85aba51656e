"""The films of a series as a step of the daemon: an edition before the volume, a file that any reader opens, the page, the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.denoise.cokriging.drawing import UNKNOWN, Drawn, Held
from aet_stream.denoise.cokriging.estimator import Drawing, Estimated, Map
from aet_stream.denoise.cokriging.evidence import Evidence
from aet_stream.denoise.cokriging.gate import Taken, Verdict
from aet_stream.denoise.cokriging.model import FILM_LENGTHS, OWN_LENGTHS, Film, Model
from aet_stream.denoise.cokriging.seen import look
from aet_stream.edition import Edition
from aet_stream.film.doubts import doubts
from aet_stream.simulate.physical import PhysicalSeries, physical_series
from tests.browser import chromium
from tests.harness import Daemon, put, running, wait_for
from tests.test_monitor import address

pytestmark = pytest.mark.timeout(400)
TILTS = np.array([-64.0, -42, -20, 2, 24, 46, 68])
FILM = {"denoise__model": "laplace", "film__enabled": True, "film__while_growing": False, "film__tilts_each_side": 3}
FILM |= {"film__memory_mib": 256, "reconstruct__on_close": False, "trigger__again_s": 0.2}


def halo() -> PhysicalSeries:
    """Contamination on the film, hidden by the particle at tilt 0."""
    return physical_series("halo", 100, TILTS, size_px=64)


def put_all(folder: Path, series: PhysicalSeries) -> None:
    for index, (tilt, pixels) in enumerate(zip(TILTS, series.raw, strict=True)):
        put(folder, index, float(tilt), pixels=pixels)


@pytest.fixture(scope="module")
def truth() -> PhysicalSeries:
    return halo()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, truth: PhysicalSeries) -> Iterator[Daemon]:
    """A closed series that shows its films."""
    settings = FILM | {"monitor__enabled": True, "monitor__port": 0, "monitor__doctor_every_s": 3600}
    with running(tmp_path_factory.mktemp("film"), **settings) as found:
        put_all(found.root / "np", truth)
        found.wait_for_totals(stored=len(TILTS))
        assert found.ask("close", "np").returncode == 0
        wait_for(lambda: shown(found) == 2, limit_s=300, what="the edition of the films")
        yield found


def shown(daemon: Daemon) -> int:
    with h5py.File(daemon.out / "np" / "series.h5") as file:
        return int(file["/aet/series"].attrs["edition"])


def test_the_series_shows_what_its_films_say(daemon: Daemon, truth: PhysicalSeries) -> None:
    """Nearer to the truth than each projection alone; clean = raw - background; trust and the verdict stand with each row."""
    with h5py.File(daemon.out / "np" / "series.h5") as file:
        clean, raw, theta = file["/exchange/data"][()], file["/aet/raw"][()], file["/exchange/theta"][()]
        expected = file["/aet/projection/expected_error"][()]
    assert np.array_equal(theta, TILTS)
    with Edition(daemon.out / "np" / "editions" / "02.h5") as edition:
        assert edition.doubts() == []
        rows = [edition.rows[number] for number in sorted(edition.rows)]
    taken = [row.estimate for row in rows]
    assert set(taken) <= {word.value for word in Taken}
    assert all("the series leaves" in row.because for row in rows)
    first = np.stack([first_edition(daemon, number) for number in range(len(TILTS))])
    inside = truth.clean > 2e-3 * truth.geometry.unit_counts
    before, now = (
        np.sqrt([np.mean(np.square(c - t)[i]) for c, t, i in zip(cleans, truth.clean, inside, strict=True)]) for cleans in (first, clean)
    )
    changed = np.array([word != Taken.SINGLE for word in taken])
    assert changed.sum() > len(TILTS) // 2
    assert np.mean(20 * np.log10(before / now)[changed]) > 2.5
    assert np.array_equal(clean[~changed], first[~changed])
    assert np.isfinite(expected).all()
    assert np.allclose(raw - clean + clean, raw, atol=1e-2)


def first_edition(daemon: Daemon, number: int) -> np.ndarray:
    with h5py.File(daemon.out / "np" / "projections" / f"{number:06d}.h5") as file:
        return np.asarray(next(file[name][()] for name in file_names(file) if name.endswith("clean")))


def file_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def test_any_reader_opens_what_is_known_of_the_films(daemon: Daemon) -> None:
    """Map, geometry, amplitudes, a verdict for each row: each with what it means."""
    with h5py.File(daemon.out / "np" / "film.h5") as file:
        assert all(file[name].attrs["meaning"] for name in file_names(file))
        films = file["film/map_counts"][()]
        assert (
            films.shape
            == file["film/sd_counts"].shape
            == (len(file["geometry/heights_px"]), len(file["film/along_px"]), len(file["film/across_px"]))
        )
        assert file["rows/tilt_deg"][()].tolist() == TILTS.tolist()
        assert file.attrs["series"] + file.attrs["mixed"] + file.attrs["single"] == len(TILTS)
        told = file["rows/changed_counts"][()]
    with h5py.File(daemon.out / "np" / "editions" / "02.h5") as file:
        kept = [name for name in file_names(file) if name.endswith("rows/changed_counts")]
        assert np.array_equal(file[kept[0]][()], told)


def test_done_is_done(daemon: Daemon) -> None:
    """The command again makes no other edition."""
    before = (daemon.out / "np" / "editions" / "02.h5").read_bytes()
    said = daemon.ask("film", "np", *daemon.set)
    assert said.stdout.startswith("edition 2 of np"), said.stderr
    assert (daemon.out / "np" / "editions" / "02.h5").read_bytes() == before
    assert sorted(path.name for path in (daemon.out / "np" / "editions").glob("*.h5")) == ["01.h5", "02.h5"]


def test_the_page_shows_the_film(daemon: Daemon, tmp_path: Path) -> None:
    """Its map, three backgrounds of the selected projection, and what the series changes; the report has the same."""
    with chromium(tmp_path / "profile") as browser:
        page = browser.page(address(daemon))
        wait_for(lambda: page.run("document.querySelectorAll('#film canvas').length") == 4, limit_s=60, what="the film's pictures")
        said = str(page.run("document.getElementById('film').innerText"))
        assert "px from the particle's middle" in said
        assert "what this tilt alone leaves open" in said
        assert all(words in said for words in ("this tilt alone", "the series", "Laplace"))
        sizes = page.run("[...document.querySelectorAll('#film canvas')].map(c => c.toDataURL().length)")
        assert min(sizes) > 500  # nothing is of one colour
        assert "7 tilts" in str(page.run("document.getElementById('film-note').innerText"))
        assert not page.errors
    made = daemon.ask("report", str(daemon.out / "np" / "series.h5"))
    assert made.returncode == 0, made.stderr
    report = (daemon.out / "np" / "report.html").read_text()
    assert "<h2>Film</h2>" in report
    assert all(words in report for words in ("as it has been seen", "background by this tilt alone", "counts under the particle"))


# ---------------------------------------------------------------- what cannot be known


EVIDENCE = Evidence(**dict.fromkeys((field.name for field in fields(Evidence)), 0.0))


def estimated(scan: float, height: float, score: float, foretold: float, unseen: float = 0.1) -> Estimated:
    model = Model((Film(height, np.full(len(FILM_LENGTHS), 0.1)),), 0.0, 0.0, np.full(len(OWN_LENGTHS), 0.1), 0.1, 0.1)
    seen = look(np.random.default_rng(0).normal(size=(64, 64)), np.full((64, 64), -9.0), 0.0)
    nothing = np.zeros((2, 2))
    drawn = Drawn(nothing, nothing, Held(1.0, 1.0), UNKNOWN, 1.0, 1.0, 0.1, 0.0, unseen, 1.0)
    drawing = Drawing(
        seen, drawn, nothing, nothing, nothing, Verdict(Taken.SINGLE, 0.0, score, foretold, foretold, 1.0, 1.0), 0.0, EVIDENCE, False
    )
    return Estimated(model, scan, 1.0, 0.0, Map(np.zeros(2), np.zeros(2), nothing[None], nothing[None]), (drawing,) * 5)


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (estimated(-4.1, 9.7, 0.17, 0.29), []),  # as of series that were simulated: a halo,
        (estimated(-0.7, 1.2, 0.99, 0.95), ["nothing_turns"]),  # one background that becomes another,
        (estimated(-0.9, 19.5, 0.56, 1.21), ["film_thick"]),  # a film as thick as the particle
        (estimated(-3.0, 0.5, 0.95, 1.0), ["film_at_axis"]),
        (estimated(-2.4, 8.0, 0.35, 0.29, unseen=0.26), ["film_unseen"]),  # a halo behind a particle that lies on it
        (estimated(-3.0, 8.0, np.nan, np.nan), []),
    ],
)
def test_what_cannot_be_known_is_said(found: Estimated, codes: list[str]) -> None:
    told = doubts(found, 8.0)
    assert [doubt.code for doubt in told] == codes
    assert all(doubt.with_remedy().count("{") == 0 for doubt in told)
