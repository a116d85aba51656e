"""The page in a real browser, against a real daemon: it shows what is stored, and nothing else happens."""

from __future__ import annotations

import importlib.resources
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import __version__, edition
from aet_stream.edition import Maker
from aet_stream.monitor.series_cache import series_id
from aet_stream.projection import Quality
from aet_stream.series import Series
from tests.browser import Browser, Page, chromium
from tests.harness import ENVIRONMENT, Daemon, known_image, put, running, wait_for
from tests.proxy import free_port
from tests.test_monitor import address, get
from tests.test_tilt_axis import TILTS_DEG, particle

pytestmark = pytest.mark.timeout(400)
HOSTILE = "<img src=x onerror=alert(1)>_+3.00deg"
CLIPPED_TILT_DEG = 13.0
AXE = importlib.resources.files("axe_core_python") / "axe.min.js"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def _tidy(browser: Browser) -> Iterator[None]:
    """After every test: no page has complained, and none has asked anybody but the monitor for anything."""
    yield
    said = [(page.run("1"), page.errors, page.requests) for page in browser.pages]
    browser.close_pages()
    for _, errors, requests in said:
        assert not errors
        hosts = {request.split("/")[2] for request in requests if not request.startswith(("data:", "blob:", "about:"))}
        assert len(hosts) == 1
        assert hosts.pop().startswith("127.0.0.1:")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A closed series with its volume; one of a projection with a hot pixel; and one of six tilts, a repeat, a clipped one, one without a
    tilt, one that is no image, one hostile name.
    """
    settings = {"reconstruct__on_close": True, "reconstruct__iterations": 3, "reconstruct__quality": False}
    settings |= {"preview__enabled": True, "preview__every_deg": 5, "preview__size_px": 32, "preview__iterations": 2}
    settings |= {"monitor__enabled": True, "monitor__port": 0, "monitor__doctor_every_s": 3600}
    with running(tmp_path_factory.mktemp("daemon"), **settings) as found:
        for index in range(7):
            put(found.root / "old", 100 + index, -60.0 + 20 * index)
        found.wait_for_totals(limit_s=180, stored=7)
        assert found.ask("close", "old").returncode == 0
        wait_for((found.out / "old" / "reconstruction.h5").exists, limit_s=120, what="the volume")
        put(found.root / "hot", 0, 7.0, kind="npy", pixels=hot_image())
        found.wait_for_totals(stored=8)
        for index in range(5):
            put(found.root / "np", index, -20.0 + 10 * index)
        found.wait_for_totals(stored=13)
        put(found.root / "np", 90, None)
        put(found.root.parent, 6, 3.0).rename(found.root / "np" / f"{HOSTILE}.tif")
        pixels = known_image(7)
        pixels[:4, :16] = 2000
        put(found.root / "np", 7, CLIPPED_TILT_DEG, pixels=pixels)
        put(found.root / "np", 8, -20.0)
        (found.root / "np" / "broken_+50.0deg.tif").write_bytes(b"II*\0 no image")
        (found.root / "np" / "movie_+50.0deg.eer").write_bytes(b"II*\0" + bytes(2000))
        found.wait_for_totals(stored=16, held=1, quarantined=1)
        yield found


def hot_image() -> np.ndarray:
    """One of whose pixels makes all others look alike."""
    pixels = known_image(3).astype("<f4")
    pixels[20, 20] = 1e11
    return pixels


def opened(browser: Browser, daemon: Daemon) -> Page:
    page = browser.page()
    page.size(1280, 800)
    page.open(address(daemon))
    page.wait("window.aet?.painted > 0 && document.querySelectorAll('.tile').length >= 10", limit_s=90, what="the page to be painted")
    return page


def choose(page: Page, series: str) -> None:
    """In the list of all of them."""
    page.run(f"[...document.querySelectorAll('#series-list button')].find((b) => b.innerText === '{series}').click()")


def leave(page: Page) -> None:
    """Before its daemon ends, which it would complain about for ever."""
    page.run("1")
    assert not page.errors
    page.open("about:blank")
    page.wait("location.href === 'about:blank'")
    page.errors.clear()


def shown_value(page: Page, view: int, x: int, y: int) -> float:
    """What the readout says under the mouse."""
    box = page.run(f"(b => [b.x, b.y, b.width])(document.querySelectorAll('.stage canvas')[{view}].getBoundingClientRect())")
    at = {"x": box[0] + (x + 0.5) * box[2] / 64, "y": box[1] + (y + 0.5) * box[2] / 64}
    page.command("Input.dispatchMouseEvent", type="mouseMoved", **at)
    return float(page.run(f"document.querySelectorAll('#readout b')[{view}].textContent").replace("−", "-"))


class Truth:
    """A series as plain HDF5 says it, in order of arrival."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path) as file:
            self.raw, self.clean, self.theta = file["/aet/raw"][()], file["/exchange/data"][()], file["/exchange/theta"][()]
            self.columns = {key: value[()] for key, value in file["/aet/projection"].items()}
        self.background = self.raw.astype(np.float32) - self.clean

    def row(self, number: int) -> int:
        return int(np.flatnonzero(self.columns["number"] == number)[0])


def numbers(text: str) -> list[float]:
    """All numbers in a text, with real minus signs and powers of ten as the page writes them."""
    return [float(one.replace("−", "-")) for one in re.findall(r"[−+-]?\d+(?:\.\d+)?(?:e[−+-]?\d+)?", text)]


def pixels_of(page: Page, element: str) -> np.ndarray:
    """(height, width, 4) 0 to 255: what a canvas or an image holds; `element` is JavaScript."""
    script = """((e) => { const c = document.createElement('canvas'), t = c.getContext('2d', { willReadFrequently: true });
        c.width = e.naturalWidth || e.width; c.height = e.naturalHeight || e.height; t.drawImage(e, 0, 0);
        return [c.height, c.width, ...t.getImageData(0, 0, c.width, c.height).data]; })"""
    height, width, *values = page.run(f"{script}({element})")
    return np.array(values).reshape(height, width, 4)


def grey_levels(page: Page, canvas: str, width: int, height: int) -> np.ndarray:
    """(height, width) 0 to 255: what a canvas shows at the middle of each pixel of the image that it holds."""
    shown = pixels_of(page, f"document.querySelector({canvas!r})")[:, :, 0]
    scale = min(shown.shape[1] / width, shown.shape[0] / height)
    x0, y0 = (shown.shape[1] - width * scale) / 2, (shown.shape[0] - height * scale) / 2
    at_x, at_y = (x0 + (np.arange(width) + 0.5) * scale).astype(int), (y0 + (np.arange(height) + 0.5) * scale).astype(int)
    return shown[np.ix_(at_y, at_x)]


def assert_shows(levels: np.ndarray, truth: np.ndarray, window: list[float] | None = None) -> None:
    """The levels are the true values between black and white, to a level; `window` is what the page says these two are.

    The lower left corner, where the scale bar is, is left out. Much of a volume's slice is exactly zero, so what is asked of the fit is a
    scale of many levels, not a share of the pixels.
    """
    free = np.ones(levels.shape, dtype=bool)
    free[-10:, :48] = False
    inside = free & (levels > 0) & (levels < 255)
    assert np.unique(levels[inside]).size > 30
    per_level, black = np.polyfit(levels[inside], truth[inside], 1)
    assert per_level > 0
    assert np.abs(np.clip((truth - black) / per_level, 0, 255) - levels)[free].max() <= 1.5
    if window is not None:
        assert [black, black + 255 * per_level] == pytest.approx(window, abs=0.6 + 2 * per_level)


def test_images_are_the_stored_pixels(browser: Browser, daemon: Daemon) -> None:
    """All 64 x 64 pixels of raw, clean and background, and the counts under the mouse; the tilt belongs to them."""
    page = opened(browser, daemon)
    truth = Truth(daemon.out / "np" / "series.h5")
    row = truth.row(page.run("aet.number"))
    assert page.run("aet.tilt_deg") == truth.theta[row]
    for kind in ("raw", "clean", "background"):
        page.run(f"(s => {{ s.value = 'grey'; s.oninput(); }})(document.querySelector('#view-{kind} select'))")
        window = numbers(page.text(f"#view-{kind} figcaption .which"))
        assert_shows(grey_levels(page, f"#view-{kind} .stage canvas", 64, 64), getattr(truth, kind)[row], window)
    for x, y in ((10, 20), (32, 32), (63, 0)):
        for view, kind in enumerate(("raw", "clean", "background")):
            value = float(getattr(truth, kind)[row][y, x])
            assert shown_value(page, view, x, y) == pytest.approx(value, abs=max(0.6, 0.01 * abs(value)))


def shows_preview(page: Page, path: Path) -> bool:
    """Note and slices are those of the preview that is there now."""
    with h5py.File(path) as file:
        slices = [file["orthoslices"][plane][()] for plane in ("xy", "xz", "yz")]
        note = rf"preview from {file.attrs['tilts']} tilts, [\d.]+ (?:s|min) ago"
    try:
        assert re.fullmatch(note, page.text("#volume-note"))
        for place, slice_ in enumerate(slices, 1):
            assert_shows(grey_levels(page, f"#volume figure:nth-child({place}) canvas", *slice_.shape[::-1]), slice_)
    except AssertionError:
        return False
    return True


def test_every_panel_says_the_truth(browser: Browser, daemon: Daemon) -> None:
    """Words, tiles, traces, coverage, advice, pace, held, quarantined, series: each figure against the series or the hub."""
    page = opened(browser, daemon)
    truth = Truth(daemon.out / "np" / "series.h5")
    status = daemon.status()
    count = len(truth.theta)
    assert page.text("#words").startswith(f"tilt {count}, {truth.theta[-1]:+.1f}°, stored ")
    assert page.text("#words").count("1 held, 1 quarantined") == 1
    page.wait("document.querySelector('#words').textContent.includes('np: 1 file *.eer: no reader')")
    whole = """(() => {
        document.querySelector("#words").textContent += "; command failed 10 times: see aet-stream events; webhook failed 3 times";
        const room = document.querySelector("#facts").getBoundingClientRect();
        const facts = [...document.querySelectorAll("#facts span")].map((span) => span.getBoundingClientRect());
        return facts.map((fact) => fact.right <= room.right + 1 && fact.bottom <= room.bottom + 1);
    })()"""
    assert page.run(whole) == [True, True]  # time since the last projection, room on the disk: however long the sentence

    page.wait("[...document.querySelectorAll('.tile img')].every((i) => i.complete && i.naturalWidth > 0)", what="thumbnails")
    tiles = [pixels_of(page, f"document.querySelectorAll('.tile img')[{place}]")[:, :, 0].ravel() for place in range(count)]
    likeness = np.corrcoef(np.concatenate([np.array(tiles, float), truth.clean.reshape(count, -1)]))[:count, count:]
    assert likeness.argmax(axis=1).tolist() == list(range(count))
    assert likeness.diagonal().min() > 0.98

    page.wait("document.querySelectorAll('#advice button').length > 0", what="advice")
    plots = dict(
        line.split(" over tilt: ") for line in page.run("[...document.querySelectorAll('.plot [role=img]')].map((e) => e.ariaLabel)")
    )
    wanted = {
        "Background level": truth.columns["background_mean"],
        "Vacuum noise": truth.columns["vacuum_noise"],
        "Trust": truth.columns["trust_in_series"],
        "Total intensity": truth.columns["total_intensity"],
        "Centre of mass, x": truth.columns["mass_x_px"],
        "Off its law": truth.columns["mass_residual_px"],
    }
    for name, values in wanted.items():
        known = np.sort(values)
        assert numbers(plots[name])[:3] == pytest.approx([known[0], known[-1], known[count // 2]], rel=0.011, abs=0.002), name

    ends = page.run(
        "[...document.querySelectorAll('#coverage line.tilt')].map((e) => [e.x2.baseVal.value - 100, 100 - e.y2.baseVal.value])"
    )
    assert sorted(math.degrees(math.atan2(*end)) for end in ends) == pytest.approx(sorted(truth.theta), abs=0.01)
    assert page.run("document.querySelectorAll('#coverage .repeat').length") == 1
    steps = np.diff(np.unique(truth.theta))
    wedge = 180 - np.ptp(truth.theta)
    said = numbers(page.text("#coverage-words"))
    assert said[:2] == [truth.theta.min(), truth.theta.max()]
    assert said[2] == pytest.approx(np.median(steps), abs=0.06)
    assert said[3] == pytest.approx(wedge, abs=0.6)

    row = int(np.flatnonzero(truth.theta == CLIPPED_TILT_DEG)[0])
    share = float((truth.raw[row] == truth.raw[row].max()).mean())
    advice = next(
        line
        for line in page.run("[...document.querySelectorAll('#advice button')].map((b) => b.innerText)")
        if "limit" in line and "clipped_above" in line
    )
    assert f"{CLIPPED_TILT_DEG:+.1f}°" in advice
    assert "of the pixels; limit" in advice
    assert numbers(advice.split("\n")[-1])[:2] == pytest.approx([share, 0.001], rel=0.02)

    stages = dict(
        page.run(
            "[...document.querySelectorAll('#pace tbody tr')].map(({cells: c}) => [c[0].innerText, c[2].innerText + ' ' + c[3].innerText])"
        )
    )
    for key, name in {"network": "background", "commit": "to disk", "total": "in all"}.items():
        figures = status["latency"]["stages"][key]
        assert numbers(stages[name]) == pytest.approx([figures["p50_s"], figures["p99_s"]], rel=0.06, abs=0.006)
    assert page.run("[...document.querySelectorAll('#pace .queue b')].map((b) => +b.innerText)") == [0, 0, 0, 0]
    crew = page.run("[...document.querySelectorAll('#pace .crew tbody tr')].map((r) => [...r.cells].slice(0, 3).map((c) => c.innerText))")
    assert crew == [["worker-0", "background", f"{status['workers']['worker-0']['done']}"]]
    assert page.text("#film").startswith("not looked for (film.enabled)")

    page.wait("document.querySelectorAll('#volume canvas').length === 3", limit_s=120, what="the preview")
    wait_for(
        lambda: shows_preview(page, daemon.out / "np" / "preview.h5"), what="the newest preview on the page"
    )  # it may be replaced meanwhile

    held = page.text("#held-list")
    assert "np/image_090.tif" in held
    assert "np/broken_+50.0deg.tif" in held
    assert all(row["reason"] in held for row in [*status["held"], *status["quarantined"]])
    assert held.count("broken_+50.0deg.tif") == 1  # the reason does not name it again
    listed = page.run(
        "[...document.querySelectorAll('#series-list tbody tr')].map((r) => [...r.cells].slice(0, 4).map((c) => c.innerText.trim()))"
    )
    assert listed == [["np", "open", f"{count}", "2"], ["hot", "open", "1", ""], ["old", "closed", "7", ""]]
    assert any("broken_+50.0deg" in line for line in page.run("[...document.querySelectorAll('#log li')].map((l) => l.innerText)"))


def test_before_the_first_projection_no_panel_is_a_bare_heading(browser: Browser, tmp_path: Path) -> None:
    """What is made of projections is not there until there is one; then all of it is."""
    panels = "['.strip', '.traces', ...['advice', 'coverage', 'film', 'volume'].map((name) => `#${name}-panel`)]"
    seen = f"{panels}.map((name) => document.querySelector(name).checkVisibility())"
    with running(tmp_path, monitor__enabled=True, monitor__port=0, watch__incomplete_s=60) as found:
        page = browser.page()
        page.size(1280, 800)
        page.open(address(found))
        page.wait("document.querySelector('#words').textContent.startsWith('waiting for the first projection')", what="the hub's words")
        assert page.run(seen) == 6 * [False]
        assert page.text("#log") == "nothing held, quarantined or closed since the monitor was started"
        cut = found.root / "np" / "cut_+10.0deg.tif"
        put(found.root.parent, 1, 10.0).rename(found.root.parent / "whole.tif")
        cut.parent.mkdir()
        cut.write_bytes((found.root.parent / "whole.tif").read_bytes()[:-600])
        said = page.wait("document.querySelector('#held-list [data-state=waiting]')?.innerText", what="what is waited for")
        assert "np/cut_+10.0deg.tif" in said
        assert "since" in said
        put(found.root / "np", 0, 0.0)
        found.wait_for_totals(limit_s=180, stored=1)
        page.wait(f"{seen}.every(Boolean)", limit_s=90, what="all panels")
        leave(page)


def test_the_page_says_why_there_is_no_film_yet(browser: Browser, daemon: Daemon) -> None:
    """Too few tilts only where they are too few; afterwards, when it is looked for."""
    page = opened(browser, daemon)
    for fewest, closed, growing, words in (
        (2, True, True, "3 tilts on both sides of 0 are needed"),
        (3, False, True, "looked for as coverage grows"),
        (3, False, False, "looked for when the series closes"),
        (3, True, True, "looked for since the series was closed"),
    ):
        rows = [{"tilt_deg": tilt} for tilt in (-9, -6, -3, 0, *range(1, fewest + 1))]
        wanted = {"tilts_each_side": 3, "while_growing": growing}
        series = json.dumps({"id": "0", "film": None, "closed": closed, "film_wanted": wanted, "rows": rows})
        said = page.run(
            "import(new URL('film.js', document.querySelector('script[type=module]').src))"
            f".then((film) => {{ film.showFilm({series}, null); return document.getElementById('film').innerText; }})"
        )
        assert str(said).startswith(f"not seen yet: {words}")


def test_a_hostile_file_name_is_only_text(browser: Browser, daemon: Daemon) -> None:
    """A name that is markup is written as it is, wherever it stands: above the images, in the tile's title, in the window's."""
    page = opened(browser, daemon)
    page.run("[...document.querySelectorAll('.tile')].find((t) => t.innerText.includes('+3.0')).click()")
    page.wait(
        "aet.tilt_deg === 3 && document.querySelector('.tile[aria-selected=true]').innerText.includes('+3.0')", what="the hostile one"
    )
    assert f"np/{HOSTILE}.tif" in page.text("#which")
    assert f"np/{HOSTILE}.tif" in page.run("document.querySelector('.tile[aria-selected=true]').title")
    assert page.run("document.querySelectorAll('img[onerror], img[src=x]').length") == 0


def test_a_chosen_series_opens_whatever_is_told_of_the_one_shown(browser: Browser, daemon: Daemon) -> None:
    """News of the shown series, while the chosen one is on its way, do not call the choice off."""
    page = opened(browser, daemon)
    shown = page.run("aet.series")
    page.run(
        "window.late = []; const ask = window.fetch; window.fetch = (at, ...more) =>"
        f" /series\\/[^/]+$/.test(at) && !at.endsWith('{shown}')"
        " ? new Promise((go) => late.push(() => go(ask(at, ...more)))) : ask(at, ...more)"
    )
    choose(page, "old")
    page.wait("late.length === 1", what="the question for the old series")
    page.run(
        "window.told = 0; const parse = JSON.parse; JSON.parse = (text) => {"
        " const said = parse(text); if (said?.type !== 'state') return said;"
        f" told++; return {{ ...said, type: 'series', series: '{shown}', what: 'series.covered' }}; }}"
    )
    page.wait("told >= 2", what="news of the shown series")
    page.run("late.forEach((go) => go())")
    page.wait("document.querySelectorAll('.tile').length === 7", what="the old series")


def test_an_old_series_opens_in_the_same_view_with_its_volume(browser: Browser, daemon: Daemon) -> None:
    """Chosen in the list: its own projections, its volume's three middle slices pixel by pixel, and following stops."""
    page = opened(browser, daemon)
    choose(page, "old")
    page.wait(
        "document.querySelectorAll('#volume canvas').length === 3 && document.querySelectorAll('.tile').length === 7", what="the old series"
    )
    page.wait("document.getElementById('volume-note').innerText.includes('reconstruction from 7 tilts')", what="its volume")
    page.wait("document.querySelectorAll('#volume canvas').length === 3", what="its slices")
    truth = Truth(daemon.out / "old" / "series.h5")
    page.wait(f"aet.tilt_deg === {truth.theta[-1]}", what="its last tilt")
    with h5py.File(daemon.out / "old" / "reconstruction.h5") as file:
        volume = file["/reconstruction/volume"][()]
    y, z, x = (edge // 2 for edge in volume.shape)
    for place, slice_ in enumerate((volume[:, z], volume[y], volume[:, :, x])):
        levels = grey_levels(page, f"#volume figure:nth-child({place + 1}) canvas", *slice_.shape[::-1])
        assert_shows(levels, slice_)
    assert page.run("document.getElementById('follow').getAttribute('aria-pressed')") == "false"
    page.run("document.getElementById('follow').click()")
    newest = Truth(daemon.out / "np" / "series.h5").theta[-1]
    page.wait(f"aet.tilt_deg === {newest} && document.querySelectorAll('.tile').length >= 10", what="the newest again")


def test_one_hot_pixel_leaves_the_others_their_greys(browser: Browser, daemon: Daemon) -> None:
    """Of a range that makes all other pixels look alike, black and white are still the percentiles of the pixels; nothing wraps around."""
    page, pixels = opened(browser, daemon), hot_image()
    choose(page, "hot")
    page.wait("aet.tilt_deg === 7 && document.querySelectorAll('.tile').length === 1", what="the hot one")
    window = numbers(page.text("#view-raw figcaption .which"))
    assert window == pytest.approx(np.percentile(pixels, (0.3, 99.8)).tolist(), abs=3)
    assert_shows(grey_levels(page, "#view-raw .stage canvas", 64, 64), pixels, window)


@pytest.mark.thorough
def test_frames_of_4096_px_come_binned_and_sharp_when_zoomed(browser: Browser, tmp_path: Path) -> None:
    """The whole frame is a fourth as fine; closer, the detector's own pixels are loaded and the counts are exact."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:4096, :4096].astype(np.float32) / 4096 - 0.5
    pixels = (3000 * np.exp(-(x * x + y * y) / 0.02) + 200 + 100 * x + rng.integers(0, 60, x.shape)).astype("<u2")
    with running(tmp_path, monitor__enabled=True, monitor__port=0) as daemon:
        put(daemon.root / "large", 0, 7.0, pixels=pixels)
        daemon.wait_for_totals(limit_s=180, stored=1)
        page = browser.page()
        page.size(1440, 900)
        page.open(address(daemon))
        page.wait("window.aet?.painted > 0", limit_s=90, what="the large frame")
        assert page.run("aet.bin") == 4
        box = page.run("(b => [b.x, b.y, b.width, b.height])(document.querySelector('#view-raw canvas').getBoundingClientRect())")
        middle = {"x": box[0] + box[2] / 2, "y": box[1] + box[3] / 2}

        def under() -> tuple[list[float], float]:
            page.command("Input.dispatchMouseEvent", type="mouseMoved", **middle)
            words = page.text("#readout")
            at = [int(value) for value in re.findall(r"\d+", words)[:2]]
            return at, float(page.run("document.querySelector('#readout b').textContent").replace("−", "-"))

        (x0, y0), shown = under()
        coarse = pixels[y0 // 4 * 4 : y0 // 4 * 4 + 4, x0 // 4 * 4 : x0 // 4 * 4 + 4]
        assert shown == pytest.approx(float(coarse.mean()), abs=1)
        for _ in range(9):
            page.press("+", code=187)
        page.wait("aet.bin === 1", limit_s=60, what="the detector's own pixels")
        (x1, y1), shown = under()
        assert shown == pixels[y1, x1]
        assert len(page.requests) < 60
        leave(page)


def test_the_command_shown_does_what_it_says(browser: Browser, daemon: Daemon) -> None:
    """The held projection's command, typed with a tilt: it is stored, and gone from the list."""
    page = opened(browser, daemon)
    stored = daemon.status()["totals"]["stored"]
    command = page.run("[...document.querySelectorAll('#held-list code')].map((c) => c.innerText).find((c) => c.includes('release'))")
    words = shlex.split(command.replace("DEG", "44"))
    assert words[0] == "aet-stream"
    answer = subprocess.run([sys.executable, "-m", "aet_stream", *words[1:]], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    daemon.wait_for_totals(stored=stored + 1, held=0)
    page.wait("aet.tilt_deg === 44 && !document.getElementById('held-list').innerText.includes('release')", what="the released one")


FOCUSABLE = """[...document.querySelectorAll('a[href], button, select, input, summary, [tabindex]')].filter((e) => e.tabIndex >= 0
    && !e.disabled
    && e.checkVisibility({ visibilityProperty: true }))"""


def test_the_keyboard_alone_is_enough(browser: Browser, daemon: Daemon) -> None:
    """Tab reaches everything and shows where it is; arrows choose, N goes to the newest, + and arrows zoom and pan, Enter does the rest."""
    page = opened(browser, daemon)
    page.wait("document.querySelectorAll('#advice button').length > 0", what="advice")
    wanted = page.run(f"{FOCUSABLE}.length")
    unseen = set()
    for _ in range(wanted + 3):
        page.press("Tab", code=9)
        bare = page.run(
            "(e => { e.dataset.reached = 1; const { outlineStyle: style, outlineWidth: width } = getComputedStyle(e);"
            " return e !== document.body && (style === 'none' || parseFloat(width) < 1) ? e.outerHTML.slice(0, 80) : '';"
            " })(document.activeElement)"
        )
        unseen |= {bare} - {""}
    assert not unseen
    assert page.run(f"{FOCUSABLE}.filter((e) => !e.dataset.reached).map((e) => e.outerHTML.slice(0, 80))") == []
    page.run("document.activeElement.blur()")

    newest = page.run("aet.number")
    page.press("ArrowLeft", code=37)
    page.wait(
        f"aet.number !== {newest} && document.getElementById('follow').getAttribute('aria-pressed') === 'false'", what="the one before"
    )
    page.press("n", code=78)
    page.wait(f"aet.number === {newest}", what="the newest")
    page.run("document.querySelector('.tile[aria-selected=true]').focus()")
    page.press("Home", code=36)
    first = Truth(daemon.out / "np" / "series.h5").theta[0]
    page.wait(f"document.activeElement === document.querySelector('.tile') && aet.tilt_deg === {first}", what="the first tile")
    page.run("document.querySelector('#advice button').focus()")
    page.press("Enter", code=13)
    (tilt_deg,) = numbers(page.text("#advice b"))
    page.wait(f"aet.tilt_deg === {tilt_deg}", what="the tilt of the advice")
    page.run("document.querySelector('#view-clean canvas').focus()")
    before = grey_levels(page, "#view-clean .stage canvas", 64, 64)
    page.press("+", code=187)
    page.press("ArrowDown", code=40)
    assert np.any(grey_levels(page, "#view-clean .stage canvas", 64, 64) != before)
    page.press("0", code=48)
    assert np.all(grey_levels(page, "#view-clean .stage canvas", 64, 64) == before)
    page.run("document.querySelector('.menu summary').focus()")
    page.press("Enter", code=13)
    page.press("Tab", code=9)
    assert page.run("document.activeElement.closest('#save') !== null")
    page.run("document.getElementById('theme').focus()")
    theme = page.run("document.documentElement.dataset.theme")
    page.press("Enter", code=13)
    assert page.run("document.documentElement.dataset.theme") != theme
    page.run("localStorage.clear()")


def audit(page: Page) -> list[str]:
    """What axe-core finds serious or critical: rule, and the first few elements."""
    page.run(AXE.read_text(encoding="utf-8") + "\n;1")
    script = """axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations
        .filter((v) => ['serious', 'critical'].includes(v.impact))
        .map((v) => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 120)).join(' | ')}`))"""
    found: list[str] = page.run(script, limit_s=120)
    return found


def test_axe_finds_nothing_serious(browser: Browser, daemon: Daemon) -> None:
    """The page with everything on it, its report, in both themes: no serious finding of axe-core; every id exists once."""
    page = opened(browser, daemon)
    page.run("document.querySelector('.menu').open = true")
    for theme in ("light", "dark"):
        page.dark(theme == "dark")
        page.wait(f"document.documentElement.dataset.theme === '{theme}'", what=theme)
        assert audit(page) == [], theme
    ids = "(() => { const ids = [...document.querySelectorAll('[id]')].map((e) => e.id); return ids.length - new Set(ids).size; })()"
    assert page.run(ids) == 0
    page.open(f"{address(daemon)}/api/v1/series/{page.run('aet.series')}/report.html")
    page.wait("document.title.includes('tilt series')", what="the report")
    for theme in ("dark", "light"):
        page.dark(theme == "dark")
        page.wait(f"matchMedia('(prefers-color-scheme: {theme})').matches", what=theme)
        assert audit(page) == [], theme
    page.size(390, 800)
    assert page.run("document.documentElement.scrollWidth") <= 390


def saved(page: Page, folder: Path, script: str) -> Path:
    """The file that a click downloads."""
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.run(script)
    return Path(wait_for(lambda: [path for path in folder.glob("*") if path.suffix in (".png", ".tif", ".csv")], what="the download")[0])


def test_a_view_is_saved_as_it_is_shown(browser: Browser, daemon: Daemon, tmp_path: Path) -> None:
    """PNG: the very pixels of the canvas, scale bar and all."""
    from matplotlib.image import imread

    page = opened(browser, daemon)
    path = saved(page, tmp_path, "document.querySelectorAll('#save button')[1].click()")
    assert path.name.endswith("_clean.png")
    assert np.array_equal(np.rint(imread(path) * 255).astype(int), pixels_of(page, "document.querySelector('#view-clean canvas')"))


def test_who_is_gone_is_missed_in_red_and_comes_back(browser: Browser, tmp_path: Path) -> None:
    """SIGKILL of the monitor: another takes over at the same port and the page goes on by itself. No daemon at all: stale, in red."""
    with running(tmp_path, monitor__enabled=True, monitor__port=free_port()) as daemon:
        put(daemon.root / "np", 0, 0.0)
        daemon.wait_for_totals(limit_s=180, stored=1)
        page = browser.page(address(daemon))
        page.wait("window.aet?.painted > 0", limit_s=90)
        assert page.run("document.getElementById('stale').hidden")
        first = daemon.pid("monitor")
        os.kill(first, signal.SIGKILL)
        put(daemon.root / "np", 1, 5.0)
        daemon.wait_for_totals(stored=2)
        page.wait("aet.number === 1", limit_s=90, what="the projection that came in the meantime")
        daemon.pid("monitor", other_than=first)
        page.wait(
            "!document.body.innerText.includes('the hub has not been heard yet')", limit_s=60, what="the other monitor to know the hub"
        )
        hub = daemon.pid("hub")
        os.kill(hub, signal.SIGSTOP)
        page.wait("document.getElementById('stale').innerText.includes('the hub is silent')", limit_s=60, what="word of the silent hub")
        os.kill(hub, signal.SIGCONT)
        page.wait("document.getElementById('stale').hidden", limit_s=60, what="the hub again")
        daemon.stop()
        page.wait(
            "/stale for \\d+ s: the monitor does not answer/.test(document.getElementById('stale').innerText)", limit_s=60, what="stale"
        )
        red, green, blue = numbers(page.run("getComputedStyle(document.getElementById('stale')).backgroundColor"))[:3]
        assert red > 2 * max(green, blue)
        assert page.run("document.getElementById('stale').getAttribute('role')") == "alert"
        assert page.text("#level") == "stale"
        page.run("1")
        assert all("ERR_CONNECTION" in error or "WebSocket" in error for error in page.errors)
        page.errors.clear()
        leave(page)


def test_a_new_projection_is_shown_by_itself_in_seven_tabs(browser: Browser, daemon: Daemon) -> None:
    """All tabs that can be seen paint the newest, and show what all projections together say of each: of this one, brighter by a third.

    A browser has six connections to one host.
    """
    pages = [opened(browser, daemon) for _ in range(7)]
    stored = daemon.status()["totals"]["stored"]
    pixels = known_image(20)
    pixels[24:40, 24:40] += 200
    put(daemon.root / "np", 20, CLIPPED_TILT_DEG + 0.5, pixels=pixels)  # covers nothing new: no event has the page read the series again
    daemon.wait_for_totals(stored=stored + 1)
    for page in pages:
        page.command("Page.bringToFront")
        page.wait(f"aet.tilt_deg === {CLIPPED_TILT_DEG + 0.5}", limit_s=60, what="the newest tilt")
    trust = np.sort(Truth(daemon.out / "np" / "series.h5").columns["trust_in_series"])
    label = "[...document.querySelectorAll('.plot [role=img]')].map((e) => e.ariaLabel).find((text) => text.startsWith('Trust'))"
    wait_for(
        lambda: numbers(pages[-1].run(label))[:3] == pytest.approx([trust[0], trust[-1], trust[len(trust) // 2]], abs=0.002),
        limit_s=20,
        what="the trust that the series says",
    )


def test_series_frames_and_report_over_http(daemon: Daemon) -> None:
    """Frames equal the series; tricks with paths and ids find nothing."""
    url = address(daemon)
    found = json.loads(get(f"{url}/api/v1/series")[1])
    assert [row["name"] for row in found] == ["np", "hot", "old"]
    one = f"{url}/api/v1/series/{found[0]['id']}"
    series = wait_for(lambda: json.loads(get(one)[1]), what="the series")
    assert len(series["rows"]) == daemon.status()["totals"]["stored"] - 8
    code, text = get(f"{one}/report.html")
    assert code == 200
    assert "&lt;img src=x" in text
    assert "<img src=x" not in text
    assert get(f"{one}/summary.csv")[1].count("\n") == len(series["rows"]) + 1
    for trick in ("../np", "np", "%2e%2e%2fnp", "0" * 16, found[0]["id"].upper() + "x", "..%2f..%2fetc%2fpasswd"):
        assert get(f"{url}/api/v1/series/{trick}")[0] == 404
    for trick in ("frames/999999/raw", "frames/0/secret", "frames/0/raw?bin=3", "frames/-1/raw", "volume/xx"):
        assert get(f"{one}/{trick}")[0] == 404
    assert get(f"{url}/static/..%2fweb.py")[0] == 404


def test_the_page_shows_what_the_doctor_found(browser: Browser, daemon: Daemon) -> None:
    """Examined by the service itself soon after its start: what is in order in one line."""
    page = opened(browser, daemon)
    page.wait("document.getElementById('station').innerText.includes('in order')", limit_s=120, what="the doctor's findings")
    said = page.run("document.getElementById('station').innerText")
    assert "watched folder" in said
    assert "settings" in said
    assert json.loads(get(f"{address(daemon)}/api/v1/doctor")[1])["version"] == __version__


def test_another_edition_is_looked_at_with_one_key(browser: Browser, daemon: Daemon) -> None:
    """E shows it, with how far it differs in figures, also of the next projection; E again what there was. Nothing is chosen by it."""
    folder = daemon.out / "old"
    maker = Maker("reprocess", "another", "9" * 64)
    removed = np.random.default_rng(1).uniform(0, 200, (64, 64)).astype(np.float32)
    with Series(folder / "series.h5") as series, edition.writing(folder, "old", maker, edition.covered(series), series.shape) as draft:
        for row in range(len(series)):
            draft.row(series.raw(row) - removed, Quality("another", "9" * 64, trust=0.25))
    assert edition.hand_over(daemon.out, "old", maker, use=False) == 2
    page = opened(browser, daemon)
    old = series_id("old")
    page.run(f"(p => {{ p.value = '{old}'; p.onchange({{ target: p }}); }})(document.querySelector('#pick'))")
    page.wait(f"window.aet.series === '{old}' && !document.querySelector('#other').hidden", what="the closed series")
    truth = Truth(folder / "series.h5")

    def looked_at(number: int, of: int) -> None:
        page.wait(f"window.aet.number === {number} && window.aet.edition === {of}", what=f"edition {of} of projection {number}")
        row = truth.row(number)
        clean = truth.clean[row] if of == 1 else truth.raw[row] - removed
        for x, y in ((10, 20), (63, 0)):
            assert shown_value(page, 1, x, y) == pytest.approx(float(clean[y, x]), abs=max(0.6, 0.01 * abs(float(clean[y, x]))))
        words = page.text("#between")
        if of == 1:
            assert words == ""
            return
        between = clean.astype(np.float64) - truth.clean[row]
        assert words.startswith("edition 2 (another), shown is 1 (")
        figures = numbers(words.partition("they differ by ")[2])
        expected = [
            np.sqrt(np.mean(between**2)),
            100 * np.sqrt(np.mean(between**2)) / truth.clean[row].std(),
            between.mean(),
            np.abs(between).max(),
        ]
        assert figures[:4] == pytest.approx(expected, rel=0.06, abs=0.6)
        assert "trust 0.25" in words

    looked_at(6, 1)
    page.press("e")
    looked_at(6, 2)
    page.press("ArrowLeft")
    looked_at(5, 2)
    if pictures := os.environ.get("AET_PICTURES"):
        page.screenshot(Path(pictures) / "editions.png")
    page.press("E")
    looked_at(5, 1)
    assert json.loads(get(f"{address(daemon)}/api/v1/series/{old}")[1])["about"]["edition"] == 1
    assert get(f"{address(daemon)}/api/v1/series/{old}/frames/5/clean?edition=7")[0] == 404
    assert get(f"{address(daemon)}/api/v1/series/{old}/frames/5/clean?edition=../2")[0] == 404


@pytest.mark.thorough
def test_a_volume_about_the_wrong_axis_says_so_where_it_is_seen(browser: Browser, tmp_path: Path) -> None:
    """The axis lies along x, nothing says so: the figure of the doubt, and the setting that ends it, stand above the slices."""
    settings = {"reconstruct__on_close": True, "reconstruct__iterations": 3, "reconstruct__quality": False, "denoise__model": "constant"}
    with running(tmp_path, monitor__enabled=True, monitor__port=0, **settings) as found:
        for index, (tilt_deg, view) in enumerate(zip(TILTS_DEG, particle("amorphous", 90.0, 0.02), strict=True)):
            put(found.root / "np", index, tilt_deg, pixels=(1000 + 1000 * view / view.max()).astype(np.uint16))
        found.wait_for_totals(stored=len(TILTS_DEG))
        assert found.ask("close", "np").returncode == 0
        wait_for((found.out / "np" / "reconstruction.h5").exists, limit_s=120, what="the volume")
        page = browser.page(address(found))
        page.size(1280, 800)
        words = page.wait("document.querySelector('#volume .doubt')?.innerText", limit_s=90, what="the doubt")
        assert words.startswith("The tilt axis does not lie at 0 deg, where it is said to")
        assert re.search(r"Say --axis-deg -?(89|90|91), and orientation.tilt_axis_deg", words)
        leave(page)
