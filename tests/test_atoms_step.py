"""Atoms as a step of the daemon: counted while the series grows, found after its volume, shown on the page, refused with the reason."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.config import Advice
from aet_stream.monitor import report
from aet_stream.monitor.series_cache import SeriesCache, series_id
from aet_stream.simulate.writers import tiff
from tests.atom_series import PIXEL_ANGSTROM, counted, fcc
from tests.browser import Page, chromium
from tests.harness import Daemon, running, wait_for
from tests.receivers import Receiver, http_receiver
from tests.test_monitor import address, get

pytestmark = pytest.mark.timeout(1200)
SIZE_PX = 48
TILTS_DEG = np.arange(-75, 76, 6.0)
PLACES = fcc(6.3)


def shoot(daemon: Daemon, series: str, images: np.ndarray, tilts_deg: np.ndarray) -> None:
    """A microscope that writes these."""
    folder = daemon.root / series
    folder.mkdir()
    for index, (image, tilt) in enumerate(zip(images, tilts_deg, strict=True)):
        (folder / f"p_{index:03d}_{tilt:+.2f}deg.tif").write_bytes(tiff(image.astype("<u2"), float(tilt), PIXEL_ANGSTROM / 10))


@pytest.fixture(scope="module")
def web() -> Iterator[Receiver]:
    """Whom events are told to."""
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, web: Receiver) -> Iterator[Daemon]:
    """It has seen a crystal, whose volume and atoms are there, and three projections of another."""
    settings = {
        "denoise__model": "constant", "monitor__enabled": True, "monitor__port": 0, "preview__every_deg": 50,
        "reconstruct__on_close": True, "reconstruct__iterations": 30, "reconstruct__align": [], "reconstruct__quality": False,
        "atoms__enabled": True, "atoms__elements": ["Au"], "webhook__url": web.address, "webhook__events": ["atoms.done"],
    }  # fmt: skip
    images = counted(PLACES, np.full(len(PLACES), 60.0), TILTS_DEG, size_px=SIZE_PX) + 1
    with running(tmp_path_factory.mktemp("daemon"), **settings) as found:
        shoot(found, "gold", images, TILTS_DEG)
        word = found.out / "gold" / "atoms.json"
        wait_for(word.exists, limit_s=300, what="the atoms to be counted")
        found.counted = json.loads(word.read_text())  # type: ignore[attr-defined]
        assert found.ask("close", "gold").returncode == 0
        wait_for(lambda: web.effects, limit_s=300, what="the atoms")
        shoot(found, "short", images[:3], TILTS_DEG[:3])
        found.wait_for_totals(limit_s=300, stored=len(images) + 3)
        assert found.ask("close", "short").returncode == 0
        wait_for((found.out / "short" / "atoms.json").exists, limit_s=300, what="the reason why there are none")
        wait_for(lambda: found.status()["events"]["pending"] == 0, limit_s=300, what="the trigger to be done")
        yield found


def report_of(daemon: Daemon, series: str) -> str:
    """Its report, as it would be made now."""
    return report.of_series(SeriesCache(daemon.out), series, Advice(), None)


def test_they_are_counted_while_the_series_grows(daemon: Daemon) -> None:
    """From a slab, at the milestone: within what is stated, or a tenth."""
    said = daemon.counted  # type: ignore[attr-defined]
    assert said["tilts"] == len(TILTS_DEG)
    assert abs(said["atoms"] - len(PLACES)) < max(3 * said["sigma"], 0.1 * len(PLACES))
    assert "clearly resolved" in said["text"]


def test_they_are_found_after_the_volume_and_told_once(daemon: Daemon, web: Receiver) -> None:
    """Beside it, complete; the event names the file; the count of before is gone; the report shows their picture."""
    folder = daemon.out / "gold"
    (event,) = web.effects
    assert (event["event"], event["data"]["atoms"]) == ("atoms.done", str(folder / "atoms.h5"))
    with h5py.File(folder / "atoms.h5") as file:
        assert len(file["atoms/weights"]) == len(PLACES)
        assert file["atoms"].attrs["edition"] == 1
    assert not (folder / "atoms.json").exists()
    page = report_of(daemon, "gold")
    assert f"{len(PLACES)} atoms, refined against {len(TILTS_DEG)} projections" in page
    assert "<img alt='atoms over slices of the volume' src='data:image/png;base64," in page


def test_three_projections_have_none_and_it_says_why(daemon: Daemon) -> None:
    """Neither atoms nor an event nor a failed try."""
    folder = daemon.out / "short"
    assert json.loads((folder / "atoms.json").read_text())["text"].startswith("no atoms: 3 directions: at least 15 are needed")
    assert not (folder / "atoms.h5").exists()
    assert daemon.status()["events"]["failed"] == 0
    assert "3 directions: at least 15 are needed" in report_of(daemon, "short")


def test_they_are_turned_on_the_page_and_taken_along(daemon: Daemon, tmp_path: Path) -> None:
    """Drawn, turned by the mouse and by keys, zoomed, brought back; XYZ as it lies on disk; nothing is asked of anybody else."""
    url, canvas, gold = address(daemon), "document.querySelector('#atoms-stage canvas')", series_id("gold")
    with chromium(tmp_path / "profile") as browser:
        page = browser.page()
        page.size(1280, 800)
        page.open(url)
        page.wait(f"!!document.querySelector(`#pick option[value='{gold}']`)", limit_s=90)
        page.run(f"(p => {{ p.value = '{gold}'; p.dispatchEvent(new Event('change')); }})(document.querySelector('#pick'))")
        page.wait("window.aet?.atoms?.drawn > 0", limit_s=90, what="atoms to be drawn")
        assert page.text("#atoms-note").startswith(f"{len(PLACES)} atoms from {len(TILTS_DEG)} tilts")
        assert f"Au: {len(PLACES)}" in page.text("#atoms-tools")
        page.run("document.querySelector('#atoms-panel').scrollIntoView()")
        still = drawn(page, canvas)
        assert golden_share(page, canvas) > 0.1
        x, y, width, height = page.run(f"(b => [b.x, b.y, b.width, b.height])({canvas}.getBoundingClientRect())")
        at = {"x": x + width / 2, "y": y + height / 2, "button": "left"}
        page.command("Input.dispatchMouseEvent", type="mousePressed", clickCount=1, **at)
        page.command("Input.dispatchMouseEvent", type="mouseMoved", buttons=1, **{**at, "x": at["x"] + 60})
        page.command("Input.dispatchMouseEvent", type="mouseReleased", clickCount=1, **{**at, "x": at["x"] + 60})
        turned = page.wait(f"(w => w !== {json.dumps(still)} && w)({SUM.format(canvas)})", what="atoms to be turned")
        page.run(f"{canvas}.focus()")
        page.press("ArrowUp", code=38)
        page.wait(f"(w => w !== {json.dumps(turned)} && w)({SUM.format(canvas)})", what="atoms to be turned by a key")
        page.press("0", code=48)
        page.wait(f"{SUM.format(canvas)} === {json.dumps(still)}", what="atoms to be as they were")
        page.command("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=-300, x=at["x"], y=at["y"])
        page.wait(f"{SUM.format(canvas)} !== {json.dumps(still)}", what="atoms to be nearer")
        page.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": at["x"], "y": at["y"], "id": 1}])
        nearer = drawn(page, canvas)
        page.command("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": at["x"] + 40, "y": at["y"] + 30, "id": 1}])
        page.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        page.wait(f"{SUM.format(canvas)} !== {json.dumps(nearer)}", what="atoms to be turned by a finger")
        assert page.errors == []
        assert {urllib.parse.urlsplit(one).netloc for one in page.requests} == {urllib.parse.urlsplit(url).netloc}
    code, text = get(f"{url}/api/v1/series/{gold}/atoms.xyz")
    assert (code, text) == (200, (daemon.out / "gold" / "atoms.xyz").read_text())


PIXELS = (
    "((t) => { t.canvas.width = c.width; t.canvas.height = c.height; t.drawImage(c, 0, 0);"
    " return t.getImageData(0, 0, c.width, c.height).data; })"
    "(document.createElement('canvas').getContext('2d', { willReadFrequently: true }))"
)
SUM = (
    "((c) => {{ let s = c.width; for (const v of "
    + PIXELS.replace("{", "{{").replace("}", "}}")
    + ") s = (s * 31 + v) | 0; return s; }})({})"
)
GOLD = (
    "((c) => { const d = "
    + PIXELS
    + "; let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] > d[i + 2] + 40; return 4 * n / d.length; })"
)


def drawn(page: Page, canvas: str) -> int:
    """A checksum of what a canvas shows, once it stands still."""
    frames = page.run("window.aet.atoms.drawn")
    page.wait("new Promise((done) => setTimeout(() => done(true), 300))")
    page.wait(f"window.aet.atoms.drawn >= {frames}")
    return int(page.run(SUM.format(canvas)))


def golden_share(page: Page, canvas: str) -> float:
    """Of the canvas: pixels that are more red than blue."""
    return float(page.run(f"{GOLD}({canvas})"))


def test_atoms_of_another_volume_are_outdated(daemon: Daemon) -> None:
    """As soon as the volume, or what the series shows, is not what they were made from."""
    cache, path = SeriesCache(daemon.out), daemon.out / "gold" / "atoms.h5"
    atoms = cache.atoms("gold")
    assert atoms is not None
    assert (atoms["outdated"], atoms["kinds"][0]["symbol"], atoms["edition"]) == (False, "Au", 1)
    for name, other in {"volume_crc32": 1, "series_digest": "others", "edition": 2}.items():
        with h5py.File(path, "r+") as file:
            kept = file["atoms"].attrs[name]
            file["atoms"].attrs[name] = other
        atoms = cache.atoms("gold")
        assert atoms is not None
        assert atoms["outdated"], name
        with h5py.File(path, "r+") as file:
            file["atoms"].attrs[name] = kept
