"""The report: made when a series closes, kept beside it, true, and never in anybody's way."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import signal
from datetime import datetime
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
from rich.console import Console

from aet_stream.cli import main
from aet_stream.hub.archive import open_ledger
from aet_stream.hub.ledger import summary
from aet_stream.monitor.terminal import glance
from aet_stream.projection import VisitKey
from aet_stream.reasons import why
from aet_stream.status import Status
from tests.harness import Daemon, put, running, wait_for
from tests.test_store import filled

pytestmark = pytest.mark.timeout(400)
TILTS = (-60.0, -40.0, -20.0, 0.0, 20.0, 40.0, 60.0)


def test_a_closed_series_has_its_report_beside_it(tmp_path: Path) -> None:
    """What was done, every tilt with its figures, model hash, volume, held and quarantined, no secret; made again it is the same."""
    daemon = Daemon(
        tmp_path,
        report__on_close=True,
        reconstruct__on_close=True,
        reconstruct__iterations=3,
        reconstruct__quality=False,
        advice__trust_below=1.0,
        webhook__url="https://hooks.example:8443/T0/s3cret?key=s3cret",
        webhook__events=[],
        command__argv=["/bin/notify", "--token=s3cret"],
        command__events=[],
    )
    for index, tilt in enumerate(TILTS):
        put(daemon.root / "np", index, tilt)
    put(daemon.root / "np", 90, None)
    (daemon.root / "np" / "<i>broken_+9.0deg.tif").write_bytes(b"II*\0 no image")
    assert daemon.run("--until-idle", "3", limit_s=300) == 0
    path = daemon.out / "np" / "report.html"
    kept = path.read_text()
    with h5py.File(daemon.out / "np" / "series.h5") as file:
        columns, about = {key: value[()] for key, value in file["/aet/projection"].items()}, dict(file["/aet/series"].attrs)
        theta = file["/exchange/theta"][()]
    opened, closed = (f"{datetime.fromisoformat(about[key]):%Y-%m-%d %H:%M:%S} UTC" for key in ("opened_utc", "closed_utc"))
    assert f"{opened}, {closed}" in kept
    assert str(columns["model_sha256"][0].decode())[:12] in kept
    for tilt, level, name in zip(theta, columns["background_mean"], columns["path"], strict=True):
        assert f"<td class='n'>{tilt:+.2f}</td>" in kept
        assert f"<td class='n'>{level:.4g}</td>" in kept
        assert name.decode() in kept
    assert re.search(r"<td>held</td><td>np/image_090", kept)
    assert re.search(r"<td>quarantined</td><td>np/&lt;i&gt;broken", kept)
    assert "<i>broken" not in kept
    shown = re.search(r"<pre>(.*)</pre>", kept, re.DOTALL)
    assert shown
    assert json.loads(html.unescape(shown[1]))["reconstruct"]["iterations"] == 3  # in lines, as it was written
    assert "advice.trust_below" in kept  # with the limits of the daemon, not the built-in ones
    assert f"reconstruction from {len(TILTS)} tilts" in kept
    assert len(re.findall(r"<img alt='slice (?:xy|xz|yz)' src='data:image/png;base64,", kept)) == 3
    assert not re.search(r"<script|https?://|\son\w+=", kept.replace("https://hooks.example:8443&quot;", ""))
    settings = json.loads(about["config"])
    assert (settings["webhook"]["url"], settings["command"]["argv"]) == ("https://hooks.example:8443", ["/bin/notify"])
    assert "s3cret" not in kept + about["config"]
    assert np.all([base64.b64decode(one).startswith(b"\x89PNG") for one in re.findall(r"base64,([^']+)'", kept)])
    path.unlink()
    again = [f"--set={word}" for word in daemon.set if word != "--set"]
    assert daemon.ask("report", str(path.with_name("series.h5")), *again).returncode == 0
    assert path.read_text() == kept
    refused = daemon.ask("report", str(path.with_name("series.h5")), "--out", str(path.with_name("series.h5")))
    assert (refused.returncode, h5py.is_hdf5(path.with_name("series.h5"))) == (1, True)
    nowhere = daemon.ask("report", str(path.with_name("series.h5")), "--out", str(tmp_path / "nodir" / "r.html"))
    assert (nowhere.returncode, "nodir/r.html: a file in a folder that exists" in nowhere.stderr) == (2, True)
    assert not list(path.parent.glob(".*.tmp"))


def test_what_is_held_today_is_named_however_much_an_old_series_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the series' own report, in status and in `top`; what there is no room for is counted."""
    for name in ("old", "s"):
        filled(tmp_path / "made" / name, 2)
        (tmp_path / "made" / name / "s").rename(tmp_path / name)
    ledger, _ = open_ledger(tmp_path)
    with ledger.transaction():
        for series, index in [("old", index) for index in range(60)] + [("s", 60), ("s", 61)]:
            unit = ledger.want(series, VisitKey(f"{series}/{index:02d}.tif", 0, "1"))
            ledger.end(unit, "held" if index < 61 else "quarantined", reason=why("no_tilt", because=""))
    status = summary(ledger)
    ledger.close()
    pages = {}
    for name in ("old", "s"):
        assert main(["report", str(tmp_path / name / "series.h5")]) == 0
        pages[name] = (tmp_path / name / "report.html").read_text()
    assert re.findall(r"<td>(held|quarantined)</td><td>(s/\d\d)", pages["s"]) == [("held", "s/60"), ("quarantined", "s/61")]
    assert "older ones" not in pages["s"]
    assert re.findall(r"<td>held</td><td>old/(\d\d)", pages["old"]) == [f"{index:02d}" for index in range(59, 9, -1)]
    assert "10 older ones are not named" in pages["old"]
    capsys.readouterr()
    assert main(["status", "--set", f"output.root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(HELD|QUARANTINED) .* (\w+/\d\d).tif", said, re.MULTILINE)[::50] == [("HELD", "s/60"), ("QUARANTINED", "s/61")]
    assert "and 11 older ones" in said
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(glance(Status(**msgspec.structs.asdict(status))))
    shown = console.file.getvalue()
    assert re.findall(r"(?:held|quarantined) (\w+/\d\d).tif", shown) == ["s/61", "s/60", "old/59", "old/58", "old/57", "old/56"]
    assert "and 56 older ones" in shown


def test_status_counts_the_series_it_does_not_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A glance shows ten; nobody has to think that those are all."""
    ledger, _ = open_ledger(tmp_path)
    with ledger.transaction():
        for index in range(12):
            ledger.end(ledger.want(f"s{index}", VisitKey(f"s{index}/a.tif", 0, "1")), "held", reason=why("no_tilt", because=""))
    ledger.close()
    assert main(["status", "--set", f"output.root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert (len(re.findall("^series ", said, re.MULTILINE)), "and 2 older series" in said) == (10, True)


def children(pid: int, word: str) -> list[int]:
    """Child processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            if parent == pid and word in (path / "cmdline").read_text().split("\0"):
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_a_report_that_hangs_or_dies_holds_up_nobody(tmp_path: Path) -> None:
    """Stopped in the middle: another series is stored all the same. Killed: made again, and nothing half-made is left."""
    with running(tmp_path, report__on_close=True) as daemon:
        for index in range(5):
            put(daemon.root / "first", index, 10.0 * index)
        daemon.wait_for_totals(stored=5)
        trigger = daemon.pid("trigger")
        assert daemon.ask("close", "first").returncode == 0
        (child,) = wait_for(lambda: children(trigger, "report"), what="the report under way")
        os.kill(child, signal.SIGSTOP)
        for index in range(3):
            put(daemon.root / "second", index, 5.0 * index)
        status = daemon.wait_for_totals(stored=8)
        path = daemon.out / "first" / "report.html"
        assert status["events"]["pending"] == 1
        assert not path.exists()
        os.kill(child, signal.SIGKILL)
        wait_for(path.exists, what="the report, made again")
        wait_for(lambda: daemon.status().get("events", {}).get("pending") == 0, what="the acknowledgement")
        assert path.read_text().endswith("</html>")
        assert not list(path.parent.glob(".*.tmp"))
