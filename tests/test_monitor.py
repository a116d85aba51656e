"""Status over HTTP: true, read-only, for this machine only."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import tifffile
from rich.console import Console
from websockets.sync.client import connect

from aet_stream.coverage import largest_gap_deg
from aet_stream.monitor import words
from aet_stream.monitor.coverage import coverage
from aet_stream.monitor.frames import encode
from aet_stream.monitor.series_cache import SeriesCache
from aet_stream.monitor.terminal import glance
from aet_stream.status import (
    ChildStatus,
    DeadDelivery,
    Deliveries,
    NotTaken,
    PutAside,
    RelayHeard,
    RelayStatus,
    Status,
    SupervisorHeard,
    SupervisorStatus,
    WatchHeard,
    WatchStatus,
    WorkerHeard,
    WorkerStatus,
    WorkerTally,
)
from tests.harness import ENVIRONMENT, Daemon, put, running, wait_for


def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=15) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def get(url: str, **headers: str) -> tuple[int, str]:
    code, body = fetch(url, **headers)
    return code, body.decode()


def address(daemon: Daemon) -> str:
    return str(wait_for(lambda: daemon.status()["roles"].get("monitor", {}).get("status", {}).get("url"), what="the monitor"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With three projections of a series whose name begins like a formula; whoever stores more does so last."""
    with running(tmp_path_factory.mktemp("daemon"), monitor__enabled=True, monitor__port=0, supervise__stall_s=600) as found:
        for index in range(3):
            put(found.root / "=np", index, 10.0 * index - 7.25)
        found.wait_for_totals(stored=3)
        yield found


def test_it_tells_what_the_hub_tells(daemon: Daemon) -> None:
    """Counts, readiness and metrics agree with what is stored; nothing but GET, no foreign host."""
    url = address(daemon)
    wait_for(lambda: json.loads(get(f"{url}/status.json")[1]).get("totals", {}).get("stored") == 3, what="three in the status")
    assert get(f"{url}/livez")[0] == 200
    wait_for(lambda: get(f"{url}/readyz") == (200, "ready\n"), what="readiness")
    metrics = get(f"{url}/metrics")[1]
    assert 'aet_projections_total{outcome="stored"} 3.0' in metrics
    assert "np" not in metrics.replace("input", "")
    assert get(f"{url}/status.json", Host="evil.example")[0] == 400
    post = urllib.request.Request(f"{url}/status.json", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(post, timeout=5)
    assert refused.value.code == 405
    refused.value.close()


def test_a_release_is_no_counter_that_falls(tmp_path: Path) -> None:
    """What is held goes up and down, so it is a gauge; nothing stored yet, no time of the last projection."""
    with running(tmp_path, monitor__enabled=True, monitor__port=0) as daemon:
        put(daemon.root / "np", 90, None)
        status = daemon.wait_for_totals(held=1)
        url = address(daemon)

        def metrics_with(line: str) -> str:
            return str(wait_for(lambda: line in (said := get(f"{url}/metrics")[1]) and said, what=line))

        metrics = metrics_with('aet_put_aside{state="held"} 1.0')
        assert 'outcome="held"' not in metrics
        assert "aet_last_projection_timestamp_seconds" not in metrics
        assert daemon.ask("release", str(status["held"][0]["id"]), "--angle", "3").returncode == 0
        daemon.wait_for_totals(stored=1, held=0)
        metrics = metrics_with('aet_projections_total{outcome="stored"} 1.0')
        assert 'aet_put_aside{state="held"} 0.0' in metrics
        assert "aet_last_projection_timestamp_seconds" in metrics


def test_it_says_when_the_hub_is_silent_and_recovers(daemon: Daemon) -> None:
    """The hub is stopped: not ready, with the reason; the hub goes on: ready again."""
    url = address(daemon)
    wait_for(lambda: get(f"{url}/readyz")[0] == 200, what="readiness")
    hub = daemon.pid("hub")
    os.kill(hub, signal.SIGSTOP)
    try:
        wait_for(lambda: get(f"{url}/readyz") == (503, "the hub is silent\n"), what="word of the silent hub")
        assert get(f"{url}/livez")[0] == 200
        code, text = get(f"{url}/status.json")
        assert code == 503
        assert "has not been heard" in json.loads(text)["daemon"]
    finally:
        os.kill(hub, signal.SIGCONT)
    wait_for(lambda: get(f"{url}/readyz")[0] == 200, what="readiness again")


def test_a_series_leaves_as_csv_and_tiff(daemon: Daemon) -> None:
    """Figures and pixels equal the series to the last bit; a name like a formula is a text; the TIFF knows its scale and tilt."""
    url = address(daemon)
    (found,) = json.loads(get(f"{url}/api/v1/series")[1])
    one = f"{url}/api/v1/series/{found['id']}"
    with h5py.File(daemon.out / "=np" / "series.h5") as file:
        columns = {key: value[()] for key, value in file["/aet/projection"].items()}
        images = {"raw": file["/aet/raw"][()], "clean": file["/exchange/data"][()]}
    images["background"] = images["raw"].astype(np.float32) - images["clean"]
    rows = list(csv.DictReader(io.StringIO(get(f"{one}/summary.csv")[1])))
    assert [row["path"] for row in rows] == ["'" + path.decode() for path in columns["path"]]
    for key in ("number", "tilt_deg", "background_mean", "vacuum_noise", "trust", "clean_crc32"):
        assert [float(row[key]) for row in rows] == columns[key].tolist(), key
    for kind, truth in images.items():
        code, body = fetch(f"{one}/frames/{columns['number'][1]}/{kind}.tiff")
        assert code == 200
        with tifffile.TiffFile(io.BytesIO(body)) as file:
            page = file.pages[0]
            assert page.asarray().dtype == truth.dtype
            assert np.array_equal(page.asarray(), truth[1])
            per_cm = page.tags["XResolution"].value
            assert 1e7 / (per_cm[0] / per_cm[1]) == pytest.approx(columns["pixel_size_nm"][1], rel=1e-4)
            assert f"{kind}, tilt {columns['tilt_deg'][1]:+.2f} deg" in page.description


def test_top_is_one_glance_and_keeps_itself_up_to_date(tmp_path: Path) -> None:
    """Counts, tilt, stages, what is held and the command that helps; no name moves the cursor; live until Ctrl-C."""
    with running(tmp_path) as daemon:
        top = [*daemon.command("top"), *daemon.set]
        environment = {**ENVIRONMENT, "COLUMNS": "160", "LINES": "50", "TERM": "xterm"}
        for index in range(3):
            put(daemon.root / "np", index, 10.0 * index)
        put(tmp_path, 3, None).rename(daemon.root / "np" / "evil\x1b[2J\u202e.tif")
        status = daemon.wait_for_totals(stored=3, held=1)
        said = subprocess.run([*top, "--once"], capture_output=True, text=True, env=environment, timeout=60, check=True).stdout
        assert "please look" in said
        assert "tilt 3, +20.0°; 1 held" in said
        assert re.search(r"np +open +3 +1 +\+20.00°", said)
        median = status["latency"]["stages"]["total"]["p50_s"]
        assert float(re.findall(r"in all +([0-9.]+) s", said)[0]) == pytest.approx(median, abs=0.001)
        assert f"aet-stream release {status['held'][0]['id']} --angle DEG" in said
        assert not {"\x1b", "\u202e"} & set(said)
        assert "evil\ufffd[2J\ufffd.tif" in said
        asked = [*daemon.command("status"), *daemon.set]
        plain = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=60, check=True).stdout
        assert not {"\x1b", "\u202e"} & set(plain)
        assert "evil\ufffd[2J\ufffd.tif" in plain

        assert not {"\x1b", "\u202e"} & set(daemon.log.read_text())
        assert "evil\ufffd[2J\ufffd.tif" in daemon.log.read_text()

        leader, follower = pty.openpty()
        live = subprocess.Popen(top, stdin=follower, stdout=follower, stderr=follower, env=environment)
        os.close(follower)
        os.set_blocking(leader, False)
        screen = bytearray()

        def shows(words: str) -> bool:
            with contextlib.suppress(OSError):  # nothing yet
                screen.extend(os.read(leader, 65536))
            return words.encode() in screen

        try:
            wait_for(lambda: shows("tilt 3, "), what="three tilts")
            put(daemon.root / "np", 4, 40.0)
            wait_for(lambda: shows("tilt 4, "), what="four tilts")
            live.send_signal(signal.SIGINT)
            wait_for(lambda: shows("nothing more") or live.poll() is not None, what="the end")  # a terminal reads on
            assert live.returncode == 130
        finally:
            live.kill()
            live.wait()
            os.close(leader)
    said = subprocess.run([*top, "--once"], capture_output=True, text=True, env=environment, timeout=60, check=True).stdout
    assert "no daemon answers" in said


@pytest.mark.parametrize(
    ("dtype", "offset"), [("<u1", 0), ("<u2", 60000), ("<i2", -30000), ("<i4", 10**9), ("<u4", 4 * 10**9), ("<f4", 1e9)]
)
def test_pixels_arrive_as_they_were(dtype: str, offset: int) -> None:
    """To half a level of their range, however far it lies from zero; up to 16 bits without a sign exactly."""
    image = (offset + np.arange(1000).reshape(20, 50) % 250).astype(dtype)
    sent = encode(image)
    said = sent.offset + sent.scale * np.frombuffer(sent.body, sent.dtype).reshape(sent.shape).astype(float)
    level = 0 if dtype in ("<u1", "<u2") else np.ptp(image.astype(float)) / 65535
    assert np.abs(said - image).max() <= 0.51 * level


def test_a_volume_that_is_none_is_no_volume(tmp_path: Path) -> None:
    """Somebody else's reconstruction.h5: nothing to show, and no failure of the page."""
    (tmp_path / "s").mkdir()
    with h5py.File(tmp_path / "s" / "reconstruction.h5", "w") as file:
        file.create_group("reconstruction/volume")
    assert SeriesCache(tmp_path).volume("s") is None


def test_no_reason_moves_the_cursor() -> None:
    """A name within a reason, or within what keeps intake waiting, is shown as harmlessly as a path."""
    words = {"reason": "the same as np/\x1b[2J.tif", "code": "noted", "remedy": "", "command": ""}
    row = PutAside(id=1, series="np", path="np/a.tif", image=0, attempts=0, tilt_deg=None, ended_at=1e9, **words)
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(glance(Status(held=(row,), paused="no room for \x1b[2J")))
    said = console.file.getvalue()
    assert "\x1b" not in said
    assert "held np/a.tif: the same as np/\ufffd[2J.tif" in said
    assert "no room for \ufffd[2J" in said


@pytest.mark.parametrize(
    ("tilts_deg", "wedge"),
    [
        ([12.0], (12, 192)),
        ([-70.0, 70.0], (110, 250)),
        ([*range(-70, 71, 2)], (70, 110)),
        ([*range(-70, -39, 2), *range(40, 71, 2)], (140, 220)),
        ([0.0, 45.0, 180.0, 90.0], (90, 180)),
    ],
)
def test_the_missing_wedge_is_the_widest_angle_without_a_tilt(tilts_deg: list[float], wedge: tuple[float, float]) -> None:
    """As of the volume, also for few tilts and in the middle of them; what is blank or superseded shows nothing."""
    rows: list[dict[str, Any]] = [{"tilt_deg": float(tilt)} for tilt in tilts_deg]
    rows += [{"tilt_deg": sum(wedge) / 2, "blank": True}, {"tilt_deg": sum(wedge) / 2 + 180, "superseded": True}]
    found = coverage(rows, 0.1)
    assert found["wedge_deg"] == pytest.approx(wedge)
    assert found["missing_wedge_deg"] == pytest.approx(largest_gap_deg(np.array(tilts_deg)))
    assert coverage(rows[-2:], 0.1) == {}


@pytest.mark.parametrize(
    ("state", "restarts", "said"),
    [("starting", 0, ["worker is starting"]), ("starting", 3, ["no worker"]), ("ready", 0, ["no worker"]), ("waiting", 1, ["no worker"])],
)
def test_a_worker_that_loads_its_network_is_not_missing(state: str, restarts: int, said: list[str]) -> None:
    """Only for the first time: one that dies again and again is."""
    worker = ChildStatus(pid=2, state=state, restarts=restarts, degraded="")
    supervisor = SupervisorHeard(pid=1, status=SupervisorStatus(roles={"worker-0": worker}))
    assert words.troubles(Status(roles={"supervisor": supervisor, "watch": WatchHeard(pid=3, status=WatchStatus())}), 0.0) == said


def test_failed_deliveries_are_named_by_who_failed() -> None:
    """A webhook that nobody answers is not called a failed reconstruction."""
    sinks = ("webhook", "webhook", "report")
    dead = tuple(DeadDelivery(event_id=str(n), event="held", series="s", sink=sink, attempts=1, detail="") for n, sink in enumerate(sinks))
    said = words.concerns(Status(events=Deliveries(failed=3, dead=dead)))
    assert said == ["webhook failed 2 times: see aet-stream events", "report failed: see aet-stream events"]


def test_who_works_elsewhere_and_who_is_gone() -> None:
    """A worker that left stays with what it has done; one of this computer is gone when it is silent; a helper says what it does."""
    relay = RelayStatus(workers=("lab2:gpu0",), helpers={"lab3:big": "volume of np", "lab3:small": ""})
    here = WorkerHeard(pid=1, age_s=0.1, status=WorkerStatus())
    roles = {"relay": RelayHeard(pid=2, status=relay), "worker-0": here, "worker-1": msgspec.structs.replace(here, age_s=9.0)}
    idle = WorkerTally(host="", done=0, lost=0, turn_s=None, compute_s=None)
    gone = WorkerTally(host="lab2", done=4, lost=1, turn_s=0.5, compute_s=0.25)
    tallies = {"lab2:gpu0": msgspec.structs.replace(gone, lost=0), "lab2:gpu1": gone, "worker-0": idle, "worker-1": idle}
    assert words.workers(Status(roles=roles, workers=tallies)) == [
        "lab2:gpu0: background, 4 done, 0.50 s each, 0.25 s of it computing",
        "lab2:gpu1: gone, 4 done, 0.50 s each, 0.25 s of it computing, 1 given to another, link lost",
        "worker-0: background, 0 done",
        "worker-1: gone, 0 done",
        "lab3:big: volume of np",
        "lab3:small: helper, free",
    ]


def test_what_is_left_out_is_told_in_few_lines() -> None:
    """The first folders by name and the rest as a number, however many there are; nothing where nothing is left out."""
    rows = tuple((f"np{index}", "*.eer", 2) for index in range(50))
    said = words.notes(Status(left_out=NotTaken(older=7, no_reader=rows, no_reader_files=130)), most=2)
    assert said == [
        "7 older files left out (watch.newer_than)", "np0: 2 files *.eer: no reader", "np1: 2 files *.eer: no reader",
        "126 more files without a reader in other folders",
    ]  # fmt: skip
    assert words.notes(Status()) == []


def test_intake_goes_on_while_the_monitor_is_stopped(daemon: Daemon) -> None:
    """SIGSTOP with a viewer at it: thirty projections are stored all the same, the series closed; awake again, it tells the truth."""
    url = address(daemon)
    with connect(url.replace("http", "ws") + "/api/v1/events", proxy=None) as viewer:
        assert json.loads(viewer.recv(timeout=10))["type"] == "snapshot"
        monitor = daemon.pid("monitor")
        os.kill(monitor, signal.SIGSTOP)
        try:
            for index in range(3, 33):
                put(daemon.root / "=np", index, float(index))
            daemon.wait_for_totals(stored=33)
            assert daemon.ask("close", "=np").returncode == 0
            assert Path(f"/proc/{monitor}/stat").read_text().rsplit(") ", 1)[1][0] == "T"
            assert daemon.pid("monitor") == monitor
        finally:
            os.kill(monitor, signal.SIGCONT)
        wait_for(lambda: json.loads(get(f"{url}/status.json")[1]).get("totals", {}).get("stored") == 33, what="the truth")
        wait_for(lambda: json.loads(get(f"{url}/api/v1/series")[1])[0]["state"] == "closed", what="word of the closed series")
