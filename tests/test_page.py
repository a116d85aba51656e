"""The page in a real browser, against a real daemon: it shows what is stored, and nothing else happens."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.browser import Browser, Page, chromium
from tests.harness import Daemon, put, running, wait_for
from tests.test_monitor import address, get

pytestmark = pytest.mark.timeout(400)
HOSTILE = "<img src=x onerror=alert(1)>_+3.00deg"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def _tidy(browser: Browser) -> Iterator[None]:
    yield
    browser.close_pages()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Five tilts of one series, one without a tilt, one with a hostile name."""
    with running(tmp_path_factory.mktemp("daemon"), monitor__enabled=True, monitor__port=0) as found:
        for index in range(5):
            put(found.root / "np", index, -20.0 + 10 * index)
        found.wait_for_totals(limit_s=180, stored=5)
        put(found.root / "np", 90, None)
        put(found.root / "np", 6, 3.0).rename(found.root / "np" / f"{HOSTILE}.tif")
        found.wait_for_totals(stored=6, held=1)
        yield found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def opened(browser: Browser, daemon: Daemon) -> Page:
    page = browser.page()
    page.size(1280, 800)
    page.open(address(daemon))
    page.wait("window.aet?.painted > 0 && document.querySelectorAll('.tile').length >= 6", limit_s=90, what="the page to be painted")
    return page


def shown_value(page: Page, view: int, x: int, y: int) -> float:
    """What the readout says under the mouse."""
    box = page.run(f"(b => [b.x, b.y, b.width])(document.querySelectorAll('.stage canvas')[{view}].getBoundingClientRect())")
    at = {"x": box[0] + (x + 0.5) * box[2] / 64, "y": box[1] + (y + 0.5) * box[2] / 64}
    page.command("Input.dispatchMouseEvent", type="mouseMoved", **at)
    return float(page.run(f"document.querySelectorAll('#readout b')[{view}].textContent").replace("−", "-"))


def test_the_page_shows_what_is_stored(browser: Browser, daemon: Daemon) -> None:
    """Pixels, tilt, counts, held with its command, a hostile name as text; no error, no request to anybody else."""
    page = opened(browser, daemon)
    url = address(daemon)
    series = daemon.out / "np" / "series.h5"
    with h5py.File(series) as file:
        row = int(np.flatnonzero(file["/aet/projection/number"][()] == page.run("aet.number"))[0])
        raw, clean, tilt = file["/aet/raw"][row], file["/exchange/data"][row], float(file["/exchange/theta"][row])
    assert page.run("aet.tilt_deg") == tilt
    for x, y in ((10, 20), (32, 32)):
        for view, truth in enumerate((raw[y, x], clean[y, x], raw[y, x] - clean[y, x])):
            assert shown_value(page, view, x, y) == pytest.approx(float(truth), abs=max(0.6, 0.01 * abs(float(truth))))
    assert page.run("new Set(document.querySelector('.stage canvas').getContext('2d').getImageData(0,0,99,99).data).size") > 20
    page.wait("document.getElementById('words').innerText.includes('1 held')", what="the held one in words")
    assert "aet-stream release" in page.text("#held-list code")
    page.wait("document.body.innerText.includes('<img src=x')", what="the hostile name as text")
    assert page.run("document.querySelectorAll('img[onerror]').length") == 0
    page.wait("document.querySelectorAll('#coverage .tilt').length === 6", what="six lines in the coverage")
    page.wait("document.querySelectorAll('#traces .plot').length >= 6", what="the traces")
    page.wait("[...document.querySelectorAll('.tile img')].every((i) => i.complete && i.naturalWidth > 0)", what="thumbnails")
    assert not page.errors
    assert all(
        request.split("://", 1)[1].startswith(url.split("://", 1)[1]) for request in page.requests if not request.startswith("data:")
    )


def test_keyboard_alone_is_enough_and_everything_has_a_name(browser: Browser, daemon: Daemon) -> None:
    """Arrows choose projections, N goes to the newest, + zooms; every control has a name, every id exists once."""
    page = opened(browser, daemon)
    newest = page.run("aet.number")
    page.press("ArrowLeft", code=37)
    page.wait(
        f"aet.number !== {newest} && document.getElementById('follow').getAttribute('aria-pressed') === 'false'", what="the one before"
    )
    page.press("n", code=78)
    page.wait(f"aet.number === {newest}", what="the newest")
    nameless = """[...document.querySelectorAll('button, select, input, canvas[role], [role=option], a[href], [tabindex="0"]')]
        .filter((e) => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.labels?.length || e.textContent.trim())).length"""
    assert page.run(nameless) == 0
    assert (
        page.run(
            "(() => { const ids = [...document.querySelectorAll('[id]')].map((e) => e.id); return ids.length - new Set(ids).size; })()"
        )
        == 0
    )
    reached = set()
    for _ in range(12):
        page.press("Tab", code=9)
        reached.add(page.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"pick", "follow", "theme"} <= reached


def test_a_killed_monitor_comes_back_and_the_page_with_it(browser: Browser, daemon: Daemon, tmp_path: Path) -> None:
    """SIGKILL: the page says stale, the supervisor starts another at the same port, the page goes on with the newest."""
    with running(tmp_path, monitor__enabled=True, monitor__port=free_port()) as other:
        put(other.root / "np", 0, 0.0)
        other.wait_for_totals(limit_s=180, stored=1)
        page = browser.page(address(other))
        page.wait("window.aet?.painted > 0", limit_s=90)
        os.kill(other.role_pids()["monitor"], signal.SIGKILL)
        put(other.root / "np", 1, 5.0)
        other.wait_for_totals(stored=2)
        page.wait("aet.number === 1", limit_s=90, what="the projection that came in the meantime")


def test_a_new_projection_is_shown_by_itself_in_eight_tabs(browser: Browser, daemon: Daemon) -> None:
    """All tabs that can be seen paint the newest."""
    pages = [opened(browser, daemon) for _ in range(8)]
    stored = daemon.status()["totals"]["stored"]
    put(daemon.root / "np", 20, 33.0)
    daemon.wait_for_totals(stored=stored + 1)
    for page in pages:
        page.command("Page.bringToFront")
        page.wait("aet.tilt_deg === 33", limit_s=60, what="the newest tilt")


def test_series_frames_and_report_over_http(daemon: Daemon) -> None:
    """Frames equal the series; tricks with paths and ids find nothing."""
    url = address(daemon)
    found = json.loads(get(f"{url}/api/v1/series")[1])
    assert [row["name"] for row in found] == ["np"]
    one = f"{url}/api/v1/series/{found[0]['id']}"
    series = wait_for(lambda: json.loads(get(one)[1]), what="the series")
    assert len(series["rows"]) == daemon.status()["totals"]["stored"]
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
